"""Runs that train factors in few bits: what the file holds is what was tested."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

import fxhash
from fxhash import training
from fxhash.errors import TrainingError
from fxhash.smh.factor_bits import FactorBits
from fxhash.training.folder import load_model
from tests.helpers import generator_of
from tests.training.tiny import left_by, resume, tiny_options, train


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A finished run in 4 bits, with averaged weights."""
    folder = tmp_path_factory.mktemp("bits") / "run"
    train(tiny_options(images, factor_bits=4, factor_group=8), folder)
    return folder


class _Interrupted(Callback):
    def on_train_epoch_start(self, trainer, classifier):
        if trainer.current_epoch == 1:
            raise RuntimeError("an accident")


def test_a_run_that_is_interrupted_reaches_the_same_weights(images, run, tmp_path):
    folder = tmp_path / "run"
    options = tiny_options(images, factor_bits=4, factor_group=8)
    with pytest.raises(RuntimeError, match="an accident"):
        training.train(options, folder, console=Console(quiet=True), callbacks=[_Interrupted()])
    assert not (folder / "result.json").exists()
    resume(folder)
    assert left_by(folder) == left_by(run)


def test_its_file_of_four_bits_is_what_was_trained(run, tmp_path):
    model = load_model(run)
    assert generator_of(model).plan.factor_bits == FactorBits(4, group=8)
    training.export(run, tmp_path / "small.safetensors", "int4")
    small = fxhash.load(tmp_path / "small.safetensors", fxhash.materialize(model))
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(small.eval()(x), model.eval()(x))
    assert training.evaluate(run, file=tmp_path / "small.safetensors")["trained"] == training.evaluate(run)["trained"]
    size = (tmp_path / "small.safetensors").stat().st_size
    assert size < 0.5 * (run / "model.safetensors").stat().st_size
    with pytest.raises(fxhash.PlanError, match="trained in 4 bits"):
        training.export(run, tmp_path / "other.safetensors", "int8")


def test_bits_are_those_of_the_run(images, run, tmp_path):
    train(tiny_options(images), tmp_path / "float")
    assert generator_of(load_model(tmp_path / "float")).plan.factor_bits is None
    assert left_by(tmp_path / "float")[1] != left_by(run)[1]


def test_a_dense_model_has_none(images, tmp_path):
    with pytest.raises(TrainingError, match="no factors to train in 8 bits: give --compress"):
        train(tiny_options(images, compress=None, factor_bits=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()
