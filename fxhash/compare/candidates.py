"""The forms of a model that PyTorch itself runs: dense, lowered, and with weights in 8 bits."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, fx, nn

import fxhash
from fxhash.compare.calling import count_multiply_adds
from fxhash.compare.rows import EAGER
from fxhash.summary import Summary

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Candidate:
    """A form of the model, ready to be called.

    Attributes:
        call: one call on the inputs of the comparison.

    The others are as of `Row`.
    """

    method: str
    call: Callable[[], object]
    parameters: int
    file_bytes: Mapping[str, int]
    multiply_adds: int | None = None
    resident_bytes: int | None = None
    runtime: str = EAGER
    compress: float | None = None


@dataclass(frozen=True)
class Compressed:
    """A model at one size: transformed, lowered, and what the summary of the latter says."""

    compress: float
    transformed: fx.GraphModule
    lowered: fx.GraphModule
    summary: Summary = field(repr=False)


def compressed(model: nn.Module, compress: float, examples: tuple[Tensor, ...]) -> Compressed:
    """Transform a model and lower the result.

    Raises:
        FxhashError: if that is not possible; it says why.
    """
    # What could not be traced is part of the comparison, and the summary is not to be printed.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        transformed = fxhash.transform(model, compress, seed=0, example_inputs=examples).eval()
        lowered = fxhash.lower_for_deploy(transformed)
        return Compressed(compress, transformed, lowered, fxhash.summary(lowered))


def dense_candidate(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> Candidate:
    """The dense model in eager mode.

    Args:
        model: in eval mode.
        inputs: of a call.
        folder: where files are written to be measured.
    """
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        path = folder / f"dense_{name}.safetensors"
        tensors = {
            key: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
            for key, tensor in _distinct(model).items()
        }
        safetensors.torch.save_file(tensors, path)
        sizes[name] = path.stat().st_size
        path.unlink()
    work = count_multiply_adds(model, inputs)
    return Candidate("dense", _call(model, inputs), _count(model), sizes, work, resident_bytes(model))


def lowered_candidate(model: Compressed, inputs: tuple[Tensor, ...], folder: Path) -> Candidate:
    """A compressed model in eager mode, lowered; its files are those of `fxhash.save`."""
    sizes = {}
    for name, dtype in _DTYPES.items():
        path = folder / f"compressed_{name}.safetensors"
        fxhash.save(model.transformed, path, dtype=dtype, allow_nan=True)
        sizes[name] = path.stat().st_size
        path.unlink()
    return Candidate(
        "fxhash",
        _call(model.lowered, inputs),
        _count(model.transformed),
        sizes,
        count_multiply_adds(model.lowered, inputs),
        lowered_bytes(model.lowered, model.summary),
        compress=model.compress,
    )


def dynamic_int8_candidate(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> Candidate | None:
    """The dense model with its linear and recurrent layers in 8 bits, by torch's own dynamic quantization.

    Returns:
        None if it has no such layers, or this version of torch can't quantize them.
    """
    kinds = {nn.Linear, nn.LSTM, nn.GRU}
    if not any(type(module) in kinds for module in model.modules()):
        return None
    path = folder / "int8.pt"
    try:
        with warnings.catch_warnings():
            # Torch advises against its own quantization, in favour of a package that needs to be installed.
            warnings.simplefilter("ignore")
            quantized = torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)
            call = _call(quantized, inputs)
            call()
            torch.save(quantized.state_dict(), path)
    except Exception:  # Whatever a version without it, or a machine without its kernels, raises.
        return None
    size = path.stat().st_size
    path.unlink()
    return Candidate("int8", call, _count(model), {"int8": size})


def resident_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in _distinct(model).values())


def lowered_bytes(lowered: nn.Module, summary: Summary) -> int:
    """Bytes that a lowered model takes for weights while it is called: factors, buffers, and scratch memory.

    Args:
        lowered: the model.
        summary: of it.
    """
    plan = summary.deployment
    assert plan is not None
    # Cached weights are buffers, and counted as such.
    return resident_bytes(lowered) + plan.peak_bytes - plan.cached_bytes


def _call(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return model(*inputs)

    return call


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
