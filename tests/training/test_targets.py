"""Runs of models from elsewhere than the zoo: what they are given and must give, and who may build them again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

pytest.importorskip("lightning")

from fxhash import training
from fxhash.errors import TargetError, TrainingError
from fxhash.targets import trusting
from fxhash.training import RunOptions, load_data
from fxhash.training.folder import build_dense, load_model, write_configuration
from fxhash.training.initialization import initial_model
from tests.cli.helpers import assert_one_line, run
from tests.training.tiny import resume, tiny_options, train

MODULE = "networks_to_train"


class TiedNet(nn.Module):
    """Two layers that share a weight, and a head."""

    def __init__(self, num_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Linear(64 * in_channels, 64 * in_channels),
            nn.Linear(64 * in_channels, 64 * in_channels),
        )
        self.second.weight = self.first.weight
        self.head = nn.Linear(64 * in_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(images.flatten(1)))))


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(MODULE)
    monkeypatch.setattr(TiedNet, "__module__", MODULE)
    module.tied = TiedNet  # type: ignore[attr-defined]
    module.features = lambda: nn.Flatten()  # type: ignore[attr-defined]
    module.fails = lambda: TiedNet("two")  # type: ignore[attr-defined]
    module.graph = lambda: fx.symbolic_trace(TiedNet(10))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)


def options(images: Path, compress: float | None = 0.3) -> RunOptions:
    return replace(tiny_options(images, compress), model=f"{MODULE}:tied", model_options={})


@pytest.mark.parametrize("compress", [None, 0.3])
def test_a_run_of_a_factory(compress: float | None, images: Path, tmp_path: Path) -> None:
    result = train(options(images, compress), tmp_path / "run")
    weights = 192 * 192 + 2 * 192 + 192 * 2 + 2
    assert result.trainable_before == weights
    assert result.trainable_after == weights if compress is None else result.trainable_after <= 0.3 * weights
    with pytest.raises(TargetError, match=f"made by '{MODULE}:tied', which may be any code.*add --trust {MODULE}$"):
        load_model(tmp_path / "run")
    with pytest.raises(TargetError, match="which may be any code"):
        resume(tmp_path / "run")
    with trusting([MODULE]):
        accuracies = training.evaluate(tmp_path / "run")
    assert accuracies["trained"] == pytest.approx(result.test_accuracy, abs=1e-6)


def test_what_a_trusted_module_has_imported_is_not_trusted(images: Path, tmp_path: Path) -> None:
    """A file may name anything that a module holds; whoever trains by such a name trusts it."""
    module: Any = sys.modules[MODULE]
    module.cwd, module.run, module.part = os.getcwd, subprocess.run, partial(TiedNet)
    with pytest.raises(TargetError, match="is no function or class: name a function that calls it"):
        train(replace(options(images), model=f"{MODULE}:part"), tmp_path / "never")
    assert not (tmp_path / "never").exists()
    train(options(images), tmp_path / "run")
    configuration = tmp_path / "run" / "run.json"
    honest = configuration.read_text()
    with trusting([MODULE]):
        for name, message in (("cwd", "is no function or class but"), ("run", "which subprocess defines")):
            forged = json.loads(honest)
            forged["options"]["model"] = f"{MODULE}:{name}"
            write_configuration(tmp_path / "run", {key: each for key, each in forged.items() if key != "sha256"})
            for function in (load_model, resume):
                with pytest.raises(TargetError, match=message):
                    function(tmp_path / "run")
    TiedNet.__module__ = "networks_of_others"
    train(options(images), tmp_path / "other")
    with trusting([MODULE]), pytest.raises(TargetError, match="if you trust that too, add --trust networks_of_others"):
        load_model(tmp_path / "other")
    with trusting([MODULE, "networks_of_others"]):
        load_model(tmp_path / "other")


def test_a_module_is_looked_for_in_the_working_directory_which_is_noted_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    for _ in range(2):
        initial_model(options(images), load_data(options(images).data, tmp_path))
    assert sys.path.count(str(tmp_path)) == 1


def test_a_teacher_of_the_same_factory(images: Path, tmp_path: Path) -> None:
    train(options(images, None), tmp_path / "dense")
    dense = str(tmp_path / "dense")
    train(replace(options(images), start=dense, teacher=dense), tmp_path / "small")
    other = replace(tiny_options(images), teacher=dense)
    with pytest.raises(TargetError, match="which may be any code"):
        train(other, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_command_takes_trust(images: Path, tmp_path: Path) -> None:
    folder, file = str(tmp_path / "run"), str(tmp_path / "model.safetensors")
    train(options(images), tmp_path / "run")
    for command in (["eval", folder], ["export", folder, file], ["bench", folder, "--batch", "1"]):
        refused = run(*command)
        assert refused.exit_code == 2
        assert refused.stderr.endswith(f"add --trust {MODULE}\n")
        assert run(*command, "--trust", MODULE).exit_code == 0
    ended = run("train", "--resume", "--output", folder, "--trust", MODULE)
    go_on = f"To go on with it, add --epochs with more than {options(images).recipe.epochs}"
    assert_one_line(ended, f"the run in {folder!r} is finished: its result is in result.json. {go_on}", status=1)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            f"{MODULE}:features",
            TrainingError,
            r"one logit for each of the 10 classes, shape \(2, 10\) .* not shape \(2, 64\)",
        ),
        (f"{MODULE}:graph", TrainingError, "is a graph: give what makes the module that it was traced from"),
        (f"{MODULE}:fails", TargetError, f"calling '{MODULE}:fails' without arguments failed: "),
        (f"{MODULE}:none", TargetError, f"can't find '{MODULE}:none'"),
        ("a b:c", TargetError, "names no model"),
    ],
)
def test_models_that_can_not_be_trained(model: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    digits = replace(tiny_options(tmp_path), data="digits", model=model, model_options={})
    with pytest.raises(error, match=message):
        train(digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_torchvision(images: Path) -> None:
    pytest.importorskip("torchvision")
    named = replace(options(images), model="torchvision:squeezenet1_1")
    model = build_dense(named, 2, 3, (64, 64))
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 2)
    with pytest.raises(TrainingError, match=r"torchvision:squeezenet1_1 can't take images of 8 x 8 pixels: .*channels"):
        initial_model(replace(named, data="digits"), load_data("digits"))
