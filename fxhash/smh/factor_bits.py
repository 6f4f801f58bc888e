"""Factors in 8 or 4 bits: symmetric integers, and the steps between them, for each row or group of entries of one.

A step is a number of bfloat16, of which integers up to 127 are exact multiples in float32: quantizing what was
quantized changes nothing, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fxhash.errors import PlanError, shown
from fxhash.smh.checks import is_count

# The magnitude of bfloat16 is the first 16 bits of float32's.
_HALF_A_STEP, _FIRST_16_BITS = 0x8000, -0x10000
_SMALLEST_STEP = torch.finfo(torch.bfloat16).tiny

Role: TypeAlias = Literal["left", "right", "kernels"]


@dataclass(frozen=True)
class FactorBits:
    """In how many bits factors are computed with, trained and stored.

    `left` has so many. What all weights share has 8 bits always: `right`, and the few spatial kernels of separable
    convolutions. There are few of these entries, and rounding one of them changes many weights.

    Attributes:
        bits: 8 or 4.
        group: how many entries of a row share a step; None for a whole row.

    Raises:
        PlanError: for another number of bits, or a group of no entry.

    Example:
        >>> FactorBits(4, group=32).largest
        7
    """

    bits: int
    group: int | None = None

    def __post_init__(self) -> None:
        if not is_count(self.bits) or self.bits not in (8, 4):
            raise PlanError(f"bits={shown(self.bits)} is no number of bits that factors can have: give 8 or 4")
        if self.group is not None and (not is_count(self.group) or self.group < 1):
            raise PlanError(
                f"group={shown(self.group)} is no number of entries that share a step: give 1 or more, or None for a "
                "whole row"
            )

    def __str__(self) -> str:
        of = "row" if self.group is None else f"{self.group} entries of a row"
        return f"{self.bits} bits, with a step for each {of}"

    @property
    def largest(self) -> int:
        """The largest integer; the smallest is its negative."""
        return 2 ** (self.bits - 1) - 1

    def of(self, role: Role) -> FactorBits:
        """How the rows of one of the factors are rounded."""
        if role == "kernels":
            return FactorBits(8)
        return self if role == "left" else FactorBits(8, self.group)

    def groups(self, entries: int) -> int:
        """How many steps a row of so many entries has."""
        return -(-entries // self.size(entries))

    def size(self, entries: int) -> int:
        """How many entries share a step in a row of so many."""
        return entries if self.group is None else min(self.group, entries)


def quantize(rows: Tensor, bits: FactorBits) -> tuple[Tensor, Tensor]:
    """Integers and steps whose products come nearest to some rows.

    A step is the largest absolute value over `bits.largest`, rounded to bfloat16.

    Args:
        rows: shape `(rows, entries)`, of a floating-point type.
        bits: how many, and for how many entries a step is.

    Returns:
        The integers in float32, shape `(rows, entries)`, and the steps in float32, shape `(rows, groups)`, which are
        numbers of bfloat16. Without gradients.

    Example:
        >>> quantize(torch.tensor([[1.0, -7.0, 3.4]]), FactorBits(4))
        (tensor([[ 1., -7.,  3.]]), tensor([[1.]]))
    """
    values = rows.detach().float()
    size = bits.size(rows.shape[1])
    missing = bits.groups(rows.shape[1]) * size - rows.shape[1]
    magnitudes = torch.nn.functional.pad(values.abs(), (0, missing)) if missing else values.abs()
    largest = magnitudes.unflatten(1, (-1, size)).amax(2)
    # Times the inverse: a division may be rounded differently where it is compiled.
    steps = _to_bfloat16((largest * (1 / bits.largest)).clamp(min=_SMALLEST_STEP))
    return (values / for_each_entry(steps, bits, rows.shape[1])).round(), steps


def dequantize(integers: Tensor, steps: Tensor, bits: FactorBits) -> Tensor:
    """The rows that integers and steps stand for, in the type of the steps.

    Args:
        integers: shape `(rows, entries)`, of any type.
        steps: shape `(rows, groups)`.
        bits: as of `quantize`.
    """
    return integers.to(steps.dtype) * for_each_entry(steps, bits, integers.shape[1])


def for_each_entry(steps: Tensor, bits: FactorBits, entries: int) -> Tensor:
    """The step of each entry of rows of so many; shape `(rows, entries)`, or `(rows, 1)` where a row has one step."""
    if steps.shape[1] == 1:
        return steps
    return steps.repeat_interleave(bits.size(entries), 1)[:, :entries]


def fake_quantized(rows: Tensor, bits: FactorBits) -> Tensor:
    """Rows with the values that they have once they are quantized, whose gradient is that of the rows as they are.

    That is the straight-through estimator (Bengio et al., arXiv 1308.3432).

    Args:
        rows: shape `(rows, entries)`.
        bits: as of `quantize`.

    Example:
        >>> rows = torch.tensor([[1.0, -7.0, 3.4]], requires_grad=True)
        >>> quantized = fake_quantized(rows, FactorBits(4))
        >>> quantized.sum().backward()
        >>> quantized.tolist(), rows.grad.tolist()
        ([[1.0, -7.0, 3.0]], [[1.0, 1.0, 1.0]])
    """
    integers, steps = quantize(rows, bits)
    # Added to a zero that has the gradient, so that not even the last bit is another one.
    return dequantize(integers, steps, bits).to(rows.dtype) + (rows - rows.detach())


def _to_bfloat16(values: Tensor) -> Tensor:
    """Positive numbers of float32 rounded to those of bfloat16.

    By their bits: a compiler takes a cast there and back for none.
    """
    return ((values.view(torch.int32) + _HALF_A_STEP) & _FIRST_16_BITS).view(torch.float32)
