"""Quantized factors, for files: in bfloat16 or float16, or in 8-bit integers with a step size a rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fxhash.errors import CheckpointError, PlanError, shown

STORAGE_DTYPES = (torch.bfloat16, torch.float16, torch.int8)
_LARGEST = 127
_STEPS = ".steps"


def quantized(tensors: Mapping[str, Tensor], along: Mapping[str, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Quantize some of the tensors.

    Integers are symmetric: a value is its integer times a step, `max(abs(values)) / 127` over a dimension. The steps
    are stored beside it, under the name with `.steps`.

    Args:
        tensors: by name.
        along: names of those to quantize, and the dimension whose entries share a step.
        dtype: `torch.bfloat16`, `torch.float16` or `torch.int8`.

    Returns:
        All tensors, those in `along` in the new type, and the steps, in float32.

    Raises:
        PlanError: for another type.
        CheckpointError: if one holds NaN or infinity, or values that the type can't hold.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in STORAGE_DTYPES:
        known = ", ".join(map(str, STORAGE_DTYPES))
        raise PlanError(f"dtype={shown(dtype)} is no type to store factors in: give one of {known}")
    result = dict(tensors)
    for name, dim in along.items():
        tensor = tensors[name]
        if dtype == torch.int8:
            steps = tensor.abs().amax(dim, keepdim=True).float() / _LARGEST
            result[name] = (tensor / steps.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
            result[name + _STEPS] = stored = steps
        else:
            result[name] = stored = tensor.to(dtype)
        if not bool(stored.isfinite().all()):
            raise CheckpointError(f"{name!r} has values that {dtype} can't hold: store it without dtype=...")
    return result


def dequantized(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Tensor]:
    """The tensors that `quantized` was given, up to rounding.

    Args:
        tensors: what was stored, by name.
        expected: tensors of the types to return, by name.
        names: of those that may be quantized.

    Returns:
        All tensors but the steps. One that is missing on either side is left to the caller to refuse.
    """
    result = dict(tensors)
    for name in names:
        if name not in tensors or name not in expected or tensors[name].dtype not in STORAGE_DTYPES:
            continue
        values = result[name].to(expected[name].dtype)
        steps = result.pop(name + _STEPS, None) if tensors[name].dtype == torch.int8 else None
        result[name] = values if steps is None else values * steps.to(values.dtype)
    return result
