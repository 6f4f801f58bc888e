"""What lowering has to know of a hashed parameter, apart from who reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fxhash.lowering.batch_norm import FoundNorm
from fxhash.lowering.costs import Costs, layer_costs, lookup_costs
from fxhash.lowering.functional import rows_per_channel
from fxhash.lowering.method import Method
from fxhash.lowering.plan import Reader, StoredTensor, WeightUse
from fxhash.smh.arithmetic import is_row_aligned
from fxhash.smh.factor_bits import FactorBits
from fxhash.smh.layout import Layout
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.plan import CompressionPlan


@dataclass(frozen=True)
class Weight:
    """A hashed parameter that is to be lowered.

    Attributes:
        parameter: its plan.
        rows: how many rows of `W` it takes.
        cols: columns of `W`.
        has_shift: whether a constant is added to the product.
        is_split: whether it is of a separable convolution that is split into a depthwise and a pointwise one.
        dtype: its type.
        factor_dtype: the type that factors are computed with in.
        factor_bits: as which integers of 8 bits they are stored; None if they are so in `factor_dtype`.
    """

    parameter: ParameterPlan
    rows: int
    cols: int
    has_shift: bool
    is_split: bool
    dtype: torch.dtype
    factor_dtype: torch.dtype
    factor_bits: FactorBits | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what layers multiply by: the weight, or that of the pointwise half of a split convolution."""
        return self.parameter.slice_shape if self.is_split else self.parameter.shape

    @property
    def bytes(self) -> int:
        """Size of what layers multiply by."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_slice(self) -> bool:
        """Whether the weight is a slice of `W`, maybe shifted; not made of a slice and kernels, and not cast."""
        return (self.is_split or not self.parameter.kernels) and self.dtype == self.factor_dtype

    @property
    def can_be_factored(self) -> bool:
        """Whether a layer can apply the factors instead of the weight: an unshifted, row-aligned slice."""
        shape = self.shape
        return self.is_slice and not self.has_shift and len(shape) >= 2 and is_row_aligned(shape, self.cols)

    @property
    def rows_per_channel(self) -> int | None:
        """How many whole rows of `W` an output channel takes; None if rows and channels are not aligned that way."""
        return rows_per_channel(self.parameter.slice_shape, self.cols)

    @property
    def slice_bytes(self) -> int:
        """Size of its slice of `W`, whole rows."""
        return self.rows * self.cols * self.factor_dtype.itemsize

    @property
    def generated_bytes(self) -> int:
        """Memory that generating it takes: its slice, what a separable one is made into, and a cast."""
        size = self.slice_bytes
        if self.parameter.kernels and not self.is_split:
            size += self.parameter.numel * self.factor_dtype.itemsize
        return size if self.dtype == self.factor_dtype else size + self.bytes

    def costs(self, reader: Reader, can_be_factored: bool) -> Costs:
        """Multiply-adds of one use; a reader of an unknown kind counts none of its own work.

        Args:
            reader: what reads it.
            can_be_factored: whether the reader can apply the factors of this weight.
        """
        rank = self.parameter.full_rank
        if can_be_factored:
            lookup = reader is Reader.EMBEDDING
            return lookup_costs(self.shape, rank) if lookup else layer_costs(self.shape, rank, self.cols)
        # A separable weight is a product twice: its slice of the factors, and that with the kernels.
        positions = math.prod(self.parameter.shape[2:]) if self.parameter.kernels and not self.is_split else 0
        return Costs(
            self.parameter.slice_numel * (rank + positions), math.prod(self.shape) if reader.is_plain_layer else 0
        )

    def stored(self, method: Method, norm: FoundNorm | None) -> Iterable[StoredTensor]:
        """What the lowered model stores for a use.

        Args:
            method: how it is computed.
            norm: the batch norm that is folded in.
        """
        is_cached = method is Method.CACHE
        if is_cached:
            yield _tensor("weight", self.dtype, *self.shape)
        else:
            rank, bits = self.parameter.full_rank, self.factor_bits
            yield _tensor("left", self.factor_dtype if bits is None else torch.int8, self.rows, rank)
            if bits is not None:
                yield _tensor("left steps", self.factor_dtype, self.rows, bits.groups(rank))
        if self.has_shift and not is_cached:
            yield _tensor("shift", self.factor_dtype)
        if self.is_split:
            yield _tensor("kernels", self.dtype, *self.parameter.kernels_shape)
        elif self.parameter.kernels and not is_cached:
            yield _tensor("kernels", self.factor_dtype, *self.parameter.kernels_shape)
        if norm is not None:
            if method is Method.GENERATE and (self.has_shift or self.rows_per_channel is None):
                yield _tensor("channel scale", self.factor_dtype, self.shape[0])
            yield _tensor("bias", self.dtype, self.shape[0])


def right_bytes(layout: Layout, dtype: torch.dtype, bits: FactorBits | None) -> int:
    """Size of `right` as it is stored, with its steps.

    Args:
        layout: its shape.
        dtype: the type that factors are computed with in.
        bits: as which integers of 8 bits it is stored; None if it is so in `dtype`.
    """
    entries = layout.rank * layout.cols
    return (
        entries * dtype.itemsize if bits is None else entries + layout.rank * bits.groups(layout.cols) * dtype.itemsize
    )


def widened_bytes(use: WeightUse, compression: CompressionPlan, dtype: torch.dtype) -> int:
    """Size of the factors of a use in floating point, as far as they are stored as integers.

    Args:
        use: the use.
        compression: the plan of the transformed model.
        dtype: the type that factors are computed with in.
    """
    if not use.stores("left"):
        return 0
    # Of a table, no rows of `left` are widened but those that are looked up.
    looks_up = use.reader is Reader.EMBEDDING and use.method is Method.FACTORED
    rows = 0 if looks_up else compression.rows_of(use.parameter)
    return (rows + compression.layout.cols) * use.parameter.full_rank * dtype.itemsize


def _tensor(role: str, dtype: torch.dtype, *shape: int) -> StoredTensor:
    return StoredTensor(role, shape, math.prod(shape) * dtype.itemsize)
