"""Quantized factors, for files: in bfloat16 or float16, or in integers of 8 or 4 bits with steps for each row or group.

Integers of 8 bits are stored as such, those of 4 bits two in a byte. Their steps, numbers of bfloat16, are stored
beside them, under the name with `.steps`. Earlier versions stored steps of float32, in `left` one for each column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.errors import CheckpointError
from fxhash.smh.checks import read_dtype
from fxhash.smh.factor_bits import FactorBits, Role, dequantize, quantize

_FLOATS = ("bfloat16", "float16")
_BITS = {"int8": 8, "int4": 4}
_STEPS = ".steps"
# How integers lie in a file.
_PACKED = {8: torch.int8, 4: torch.uint8}


@dataclass(frozen=True)
class FactorRows:
    """Tensors of a generator's state dict that are quantized together: rows of `left`, of `right` or of kernels.

    Attributes:
        names: one, or that of a block of `left` and that of its further column, which has fewer rows.
        role: what they are rows of.
        trained: in how many bits the factors were trained; None if as they are.
    """

    names: tuple[str, ...]
    role: Role
    trained: FactorBits | None

    @property
    def steps_name(self) -> str:
        """Under which name their steps are stored."""
        return self.names[0] + _STEPS

    def bits(self, count: int) -> FactorBits:
        """How they are quantized where factors have so many bits."""
        return (self.trained or FactorBits(count)).of(self.role)

    def is_of_an_earlier_version(self, stored: Mapping[str, Tensor]) -> bool:
        """Whether they were stored in 8 bits with steps of float32."""
        first, steps = stored.get(self.names[0]), stored.get(self.steps_name)
        if self.trained or first is None or steps is None:
            return False
        return first.dtype == torch.int8 and steps.dtype == torch.float32

    def stored_bits(self, stored: Mapping[str, Tensor]) -> FactorBits | None:
        """How they were quantized, if they were stored as integers of this version."""
        first = stored.get(self.names[0])
        count = next((bits for bits, dtype in _PACKED.items() if first is not None and first.dtype == dtype), None)
        return None if count is None or self.is_of_an_earlier_version(stored) else self.bits(count)


def read_storage_dtype(dtype: object) -> torch.dtype:
    """The type to store factors in that is meant: bfloat16, float16, int8 or int4, or the name of one.

    Raises:
        PlanError: for any other type.
    """
    return read_dtype(dtype, (*_FLOATS, *_BITS), "type to store factors in")


def read_dense_dtype(dtype: object) -> torch.dtype:
    """The type to store all but factors in that is meant: bfloat16 or float16, or the name of one.

    Raises:
        PlanError: for any other type.
    """
    return read_dtype(dtype, _FLOATS, "type to store all but factors in", "dense_dtype")


def narrower_dtypes(dtype: torch.dtype) -> set[torch.dtype]:
    """In which types a file may hold a tensor of this type that is no factor."""
    is_wide = dtype.is_floating_point and dtype.itemsize > 2
    return {dtype, *(getattr(torch, name) for name in _FLOATS)} if is_wide else {dtype}


def bits_of(dtype: torch.dtype | None) -> int | None:
    """How many bits an integer type to store factors in has; None for any other type."""
    return _BITS.get(str(dtype).removeprefix("torch."))


def quantized(tensors: Mapping[str, Tensor], rows: Sequence[FactorRows], dtype: torch.dtype) -> dict[str, Tensor]:
    """Quantize some of the tensors.

    Args:
        tensors: by name.
        rows: those to quantize.
        dtype: of `read_storage_dtype`.

    Returns:
        All tensors, those in `rows` in the new type, and the steps.

    Raises:
        CheckpointError: if one holds values that the type can't hold, which are NaN and infinity for integers.
    """
    result = dict(tensors)
    count = bits_of(dtype)
    for each in rows:
        if count is None:
            changed = held = {name: tensors[name].to(dtype) for name in each.names}
        else:
            changed = _as_integers(each, tensors, each.bits(count))
            held = _dequantized(each, changed, {name: tensors[name].shape for name in each.names})
        for name, value in held.items():
            # NaN and infinity stay what they are in a floating-point type, but no integer is either.
            expected = tensors[name].isfinite() if count is None else True
            _refuse_unlike(value, expected, name, dtype, "dtype")
        result.update(changed)
    return result


def narrowed(tensors: Mapping[str, Tensor], names: Collection[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of which some are in another floating-point type.

    Args:
        tensors: by name.
        names: of those that are cast, if they are wider than the type.
        dtype: of `read_dense_dtype`.

    Raises:
        CheckpointError: if one holds finite values that are infinite in the type.
    """
    result = dict(tensors)
    for name in names:
        if dtype in narrower_dtypes(tensors[name].dtype):
            result[name] = tensors[name].to(dtype)
            _refuse_unlike(result[name], tensors[name].isfinite(), name, dtype, "dense_dtype")
    return result


def _refuse_unlike(value: Tensor, finite: Tensor | bool, name: str, dtype: torch.dtype, argument: str) -> None:
    """Raise CheckpointError unless a cast value is finite where it should be, and there alone."""
    if not bool((value.isfinite() == finite).all()):
        raise CheckpointError(f"{name!r} has values that {dtype} can't hold: store it without {argument}=...")


def _as_integers(rows: FactorRows, tensors: Mapping[str, Tensor], bits: FactorBits) -> dict[str, Tensor]:
    parts = [tensors[name] for name in rows.names]
    integers, steps = quantize(_side_by_side(parts), bits)
    pieces = _apart(integers, [part.shape for part in parts])
    packed = {name: _packed(piece, bits) for name, piece in zip(rows.names, pieces, strict=True)}
    return packed | {rows.steps_name: steps.to(torch.bfloat16)}


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """A block of rows, and behind its first rows a further column."""
    count = len(parts[0])
    return torch.cat([F.pad(part, (0, 0, 0, count - len(part))) for part in parts], 1) if parts[1:] else parts[0]


def _apart(together: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    pieces = together.split([columns for _, columns in shapes], 1)
    return [piece[:count] for piece, (count, _) in zip(pieces, shapes, strict=True)]


def _packed(integers: Tensor, bits: FactorBits) -> Tensor:
    if bits.bits == 8:
        return integers.to(torch.int8).contiguous()
    nibbles = (integers.flatten() + 8).to(torch.uint8)
    first, second = F.pad(nibbles, (0, len(nibbles) % 2)).view(-1, 2).unbind(1)
    return first | (second << 4)


def _unpacked(packed: Tensor, bits: FactorBits, shape: Sequence[int]) -> Tensor:
    if bits.bits == 8:
        return packed.float()
    nibbles = torch.stack([packed & 15, packed >> 4], 1).flatten()[: shape[0] * shape[1]]
    return (nibbles.float() - 8).view(*shape)


def stored_forms(
    expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], rows: Sequence[FactorRows]
) -> dict[str, tuple[tuple[int, ...], set[torch.dtype]]]:
    """Shapes and types that the tensors of some rows have in a file that fits, and those of their steps.

    Args:
        expected: tensors before quantization, of which only shapes and types count.
        stored: what was stored, by name, whose types say how.
        rows: those that may be quantized.
    """
    forms: dict[str, tuple[tuple[int, ...], set[torch.dtype]]] = {}
    for each in rows:
        shapes = {name: tuple(expected[name].shape) for name in each.names}
        bits = each.stored_bits(stored)
        if each.is_of_an_earlier_version(stored):
            for name, (count, entries) in shapes.items():
                forms[name] = ((count, entries), {torch.int8})
                forms[name + _STEPS] = ((1, entries) if each.role == "left" else (count, 1), {torch.float32})
        elif bits is not None:
            for name, (count, entries) in shapes.items():
                packed = (count, entries) if bits.bits == 8 else (-(-count * entries // 2),)
                forms[name] = (packed, {_PACKED[bits.bits]})
            groups = bits.groups(sum(entries for _, entries in shapes.values()))
            forms[each.steps_name] = ((shapes[each.names[0]][0], groups), {torch.bfloat16})
        else:
            narrow = set() if each.trained else {torch.bfloat16, torch.float16}
            forms |= {name: (shape, {expected[name].dtype, *narrow}) for name, shape in shapes.items()}
    return forms


def dequantize_(tensors: Mapping[str, Tensor], rows: FactorRows, stored: Mapping[str, Tensor], path: object) -> None:
    """Set tensors to what was stored of them, up to rounding, in their own types and memory.

    Args:
        tensors: by name, at least those of `rows`.
        rows: which of them.
        stored: by name, of the forms that `stored_forms` states.
        path: of the file, for messages.

    Raises:
        CheckpointError: if they were trained in few bits, and integers are stored that this training can't have given.
    """
    shapes = {name: tensors[name].shape for name in rows.names}
    if rows.is_of_an_earlier_version(stored):
        for name in rows.names:
            tensors[name].copy_(stored[name]).mul_(stored[name + _STEPS].to(tensors[name]))
        return
    bits = rows.stored_bits(stored)
    if bits is None:
        for name in rows.names:
            tensors[name].copy_(stored[name])
        return
    values = _dequantized(rows, stored, shapes)
    if rows.trained and any(
        not torch.equal(values[name], again)
        for name, again in _dequantized(rows, _as_integers(rows, values, bits), shapes).items()
    ):
        raise CheckpointError(
            f"{path}: {rows.names[0]!r} holds integers that are not those of factors in {rows.trained.bits} bits"
        )
    for name, value in values.items():
        tensors[name].copy_(value)


def _dequantized(
    rows: FactorRows, stored: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """What integers of this version stand for, in float32."""
    bits = rows.stored_bits(stored)
    assert bits is not None
    parts = [_unpacked(stored[name], bits, shapes[name]) for name in rows.names]
    together = dequantize(_side_by_side(parts), stored[rows.steps_name].float(), bits)
    return dict(zip(rows.names, _apart(together, list(shapes.values())), strict=True))
