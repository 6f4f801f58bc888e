"""All tensors of a small model in one, with a compressed description of them, and of the plan.

A header of safetensors takes about 90 bytes for a tensor, and a plan as many for a parameter: together as much as the
factors of a small model in few bits.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxhash.smh.bounded_json import read_json
from fxhash.smh.checks import is_count
from fxhash.smh.parameters import dtype_name

DESCRIPTION, VALUES = "fxhash.description", "fxhash.values"

# A longer description is none of a small model. It also bounds what one from a stranger grows to.
_LONGEST_DESCRIPTION = 2**20
_MOST_TENSORS = 10_000
_MOST_DIMENSIONS = 64
# By name, since not every attribute of torch that is a type can be read from bytes.
_DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


def together(plan: str, tensors: Mapping[str, Tensor], factory: str) -> dict[str, Tensor] | None:
    """Tensors as two of bytes, `DESCRIPTION` and `VALUES`; None if there is too much to describe, or of other types.

    Args:
        plan: as JSON.
        tensors: by name; contiguous and on the CPU.
        factory: as JSON; empty for none.
    """
    if any(dtype_name(tensor.dtype) not in _DTYPES or tensor.dim() > _MOST_DIMENSIONS for tensor in tensors.values()):
        return None
    # The widest first, so that each lies where its type may.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    described = {name: [dtype_name(tensors[name].dtype), *tensors[name].shape] for name in names}
    text = json.dumps({"plan": plan, "factory": factory, "tensors": described}, separators=(",", ":"))
    if len(text) > _LONGEST_DESCRIPTION or len(tensors) > _MOST_TENSORS:
        return None
    pieces = [tensors[name].flatten().view(torch.uint8) for name in names if tensors[name].numel()]
    description = torch.frombuffer(bytearray(zlib.compress(text.encode(), 9)), dtype=torch.uint8)
    return {DESCRIPTION: description, VALUES: torch.cat([torch.empty(0, dtype=torch.uint8), *pieces])}


def apart(stored: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], str]:
    """The plan, the tensors and the factory that `together` was given; the tensors are views.

    Raises:
        ValueError: if it is not that, as are TypeError, KeyError, AttributeError and RecursionError: nothing that it
            says is trusted.
    """
    if any(tensor.dtype != torch.uint8 or tensor.dim() != 1 for tensor in stored.values()):
        raise ValueError("the description or the values are no bytes")
    described = read_json(_decompressed(stored[DESCRIPTION].numpy().tobytes()))
    plan, factory, shapes = described["plan"], described["factory"], described["tensors"]
    if not isinstance(plan, str) or not isinstance(factory, str):
        raise TypeError("the plan or the factory is no text")
    if len(shapes) > _MOST_TENSORS:
        raise ValueError(f"it describes {len(shapes):,} tensors")
    values, offset = stored[VALUES], 0
    tensors = {}
    for name, (dtype, *shape) in shapes.items():
        tensors[name] = tensor = _tensor(values, offset, dtype, shape)
        offset += tensor.nbytes
    if offset != len(values):
        raise ValueError(f"there are {len(values):,} bytes of values, not {offset:,}")
    return plan, tensors, factory


def _decompressed(content: bytes) -> str:
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(content, _LONGEST_DESCRIPTION)
    except zlib.error as error:
        raise ValueError(f"the description can't be decompressed: {error}") from error
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"the description is truncated, or longer than {_LONGEST_DESCRIPTION:,} characters")
    return text.decode("ascii")


def _tensor(values: Tensor, offset: int, dtype_named: Any, shape: list[Any]) -> Tensor:
    dtype = _DTYPES[dtype_named]
    if len(shape) > _MOST_DIMENSIONS or not all(map(is_count, shape)):
        raise ValueError("a tensor has no shape")
    size = math.prod(shape) * dtype.itemsize
    if size > len(values) - offset or offset % dtype.itemsize:
        raise ValueError("a tensor lies outside of the values, or where its type can't")
    if not size:
        return torch.empty(shape, dtype=dtype)
    return values[offset : offset + size].view(dtype).view(shape)
