"""Quantized factors, for files: in bfloat16 or float16, or in 8-bit integers with a step size a rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fxhash.errors import CheckpointError
from fxhash.smh.checks import read_dtype

STORAGE_DTYPES = (torch.bfloat16, torch.float16, torch.int8)
_LARGEST = 127
_STEPS = ".steps"


def read_storage_dtype(dtype: object) -> torch.dtype:
    """The type to store factors in that is meant: one of `STORAGE_DTYPES`, or the name of one.

    Raises:
        PlanError: for any other type.
    """
    return read_dtype(dtype, [str(each).removeprefix("torch.") for each in STORAGE_DTYPES], "type to store factors in")


def quantized(tensors: Mapping[str, Tensor], along: Mapping[str, int], dtype: torch.dtype | str) -> dict[str, Tensor]:
    """Quantize some of the tensors.

    Integers are symmetric: a value is its integer times a step, `max(abs(values)) / 127` over a dimension. The steps
    are stored beside it, under the name with `.steps`.

    Args:
        tensors: by name.
        along: names of those to quantize, and the dimension whose entries share a step.
        dtype: `torch.bfloat16`, `torch.float16` or `torch.int8`, or the name of one.

    Returns:
        All tensors, those in `along` in the new type, and the steps, in float32.

    Raises:
        PlanError: for another type.
        CheckpointError: if one holds values that the type can't hold, which are NaN and infinity for integers.
    """
    dtype = read_storage_dtype(dtype)
    result = dict(tensors)
    for name, dim in along.items():
        tensor = tensors[name]
        if dtype == torch.int8:
            steps = tensor.abs().amax(dim, keepdim=True).float() / _LARGEST
            result[name] = (tensor / steps.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
            result[name + _STEPS] = stored = steps
        else:
            result[name] = stored = tensor.to(dtype)
        # NaN and infinity stay what they are in a floating-point type, but no integer is either.
        unchanged = tensor.isfinite() if dtype != torch.int8 else True
        if not bool((stored.isfinite() == unchanged).all()):
            raise CheckpointError(f"{name!r} has values that {dtype} can't hold: store it without dtype=...")
    return result


def steps_shapes(
    expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], along: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the steps that must be stored beside tensors in 8 bits.

    Args:
        expected: tensors before quantization, of which only shapes count.
        stored: what was stored, by name.
        along: as of `quantized`.
    """
    return {
        name + _STEPS: (*expected[name].shape[:dim], 1, *expected[name].shape[dim + 1 :])
        for name, dim in along.items()
        if name in stored and stored[name].dtype == torch.int8
    }


def dequantize_(tensor: Tensor, name: str, stored: Mapping[str, Tensor]) -> None:
    """Set a tensor to what was stored of it, up to rounding, in the tensor's own type and memory.

    Args:
        tensor: of the shape of what was stored.
        name: under which it was stored.
        stored: by name, with the steps that `steps_shapes` names.
    """
    tensor.copy_(stored[name])
    if stored[name].dtype == torch.int8:
        tensor.mul_(stored[name + _STEPS].to(tensor))
