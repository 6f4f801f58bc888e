"""Curves for TensorBoard: a missing package is noticed before anything is written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from fxhash.errors import TrainingError

pytest.importorskip("lightning")

from lightning.pytorch import Trainer
from typer.testing import CliRunner

from fxhash import cli, training
from fxhash.training import RunOptions, load_recipe

QUICK = RunOptions("resnet8", "digits", load_recipe("digits").with_changes({"epochs": 1}), 0.3)
MISSING = 'tensorboard is not installed; to get it: pip install "fxhash[tensorboard]"'


@pytest.fixture
def _no_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)


def train(options, folder):
    return training.train(options, folder, console=Console(quiet=True))


def resume(folder):
    return training.resume(folder, console=Console(quiet=True))


@pytest.mark.usefixtures("_no_tensorboard")
def test_a_run_without_the_package_writes_nothing(tmp_path):
    with pytest.raises(TrainingError) as caught:
        train(replace(QUICK, tensorboard=True), tmp_path / "run")
    assert str(caught.value) == MISSING
    assert not (tmp_path / "run").exists()
    train(QUICK, tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.usefixtures("_no_tensorboard")
def test_the_command_says_what_to_install_in_one_line(tmp_path):
    arguments = ["train", "--model", "resnet8", "--tensorboard", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(cli.create_app(), arguments)
    assert (result.exit_code, result.stderr) == (1, f"fxhash: error: {MISSING}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_no_tensorboard")
def test_a_run_that_goes_on_without_the_package_stays_as_it_is(tmp_path, monkeypatch):
    """As a run that was started elsewhere, or before the package was checked for."""

    def stop(*_, **__):
        raise TrainingError("stopped before the first step")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", stop)
        with pytest.raises(TrainingError, match="stopped before"):
            train(QUICK, tmp_path / "run")
    configuration = tmp_path / "run" / "run.json"
    values = json.loads(configuration.read_text())
    values["options"]["tensorboard"] = True
    configuration.write_text(json.dumps(values))
    with pytest.raises(TrainingError) as caught:
        resume(tmp_path / "run")
    assert str(caught.value) == MISSING
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.json", "run.lock"]
    assert json.loads(configuration.read_text()) == values
    values["options"]["tensorboard"] = False
    configuration.write_text(json.dumps(values))
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


def test_the_curves_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(replace(QUICK, tensorboard=True), tmp_path / "run")
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (last,) = curves.Scalars("test_accuracy")
    assert last.value == pytest.approx(result.test_accuracy, abs=1e-6)
