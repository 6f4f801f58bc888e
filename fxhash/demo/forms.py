"""The forms in which a trained network is deployed, each with its file."""

from __future__ import annotations

import contextlib
import copy
import io
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

import fxhash
from fxhash.compare.candidates import Candidate, lowered_bytes, resident_bytes
from fxhash.demo.int8 import quantize, quantized_bytes
from fxhash.training.finished import export
from fxhash.training.folder import load_model
from fxhash.training.options import RunResult


@dataclass(frozen=True)
class Form:
    """A trained network, ready to be called.

    Attributes:
        deployed: what is called, in eval mode.
        path: its file.

    The others are as of `fxhash.demo.results.Result`.
    """

    name: str
    method: str
    parameters: int
    trained_accuracy: float
    deployed: nn.Module
    path: Path
    resident_bytes: int

    def candidate(self, image: Tensor) -> Candidate:
        """A call with one image, to be timed beside others."""

        def call() -> object:
            with torch.inference_mode():
                return self.deployed(image)

        return Candidate(self.method, call, self.parameters, {}, None, self.resident_bytes)


def dense(name: str, method: str, run: Path, result: RunResult, output: Path) -> Form:
    """A dense network as its run left it.

    Args:
        name: of the form.
        method: of the form.
        run: folder of the run.
        result: of the run.
        output: directory for the file.
    """
    path = _path(output, name)
    export(run, path)
    model = load_model(run, path)
    return Form(name, method, result.trainable_after, result.test_accuracy, model, path, resident_bytes(model))


def folded(form: Form, output: Path) -> Form:
    """A dense network with its batch norms folded into the convolutions before them, which lowering does on its own."""
    name = f"{form.name}, folded"
    path = _path(output, name)
    model = fuse(copy.deepcopy(form.deployed))
    safetensors.torch.save_model(model, str(path))
    return Form(name, "folded", form.parameters, form.trained_accuracy, model, path, resident_bytes(model))


def int8(form: Form, images: Tensor, output: Path) -> Form | None:
    """A dense network in 8 bits; None where torch can't do that.

    Args:
        form: the dense network.
        images: for training, normalized, by which the ranges of activations are found.
        output: directory for the file.
    """
    model = quantize(form.deployed, images)
    if model is None:
        return None
    path = output / "int8.pt"
    torch.save(model.state_dict(), path)
    return Form("int8", "int8", form.parameters, form.trained_accuracy, model, path, quantized_bytes(model))


def compressed(
    name: str, run: Path, result: RunResult, output: Path, memory_budget: int, dtype: str | None = None
) -> Form:
    """A compressed network, loaded from its file and lowered.

    Args:
        name: of the form.
        run: folder of the run.
        result: of the run.
        output: directory for the file.
        memory_budget: bytes that its weights may take while it is called.
        dtype: type to store the factors in; as they are if None.
    """
    path = _path(output, name)
    export(run, path, dtype)
    transformed = load_model(run, path)
    assert isinstance(transformed, fx.GraphModule)
    lowered = fxhash.lower_for_deploy(transformed, memory_budget=memory_budget)
    # The summary is not to be printed.
    with contextlib.redirect_stdout(io.StringIO()):
        resident = lowered_bytes(lowered, fxhash.summary(lowered))
    method = "fxhash" if dtype is None else f"fxhash {dtype}"
    return Form(name, method, result.trainable_after, result.test_accuracy, lowered, path, resident)


def _path(output: Path, name: str) -> Path:
    """Such as `fxhash_10_percent_8_bits.safetensors`."""
    return output / f"{name.replace(',', '').replace('%', 'percent').replace(' ', '_')}.safetensors"
