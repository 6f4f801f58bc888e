"""What is planned for one parameter of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fxhash.errors import PlanError
from fxhash.smh.checks import LARGEST_COUNT, is_count

# PyTorch's own limit for most operations.
_MOST_DIMENSIONS = 64

HASHABLE_DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ParameterPlan:
    """One parameter of the original model.

    Attributes:
        fqn: fully qualified name in the original model; of tied names, the first.
        shape: the parameter's shape.
        dtype: the parameter's type without the `torch.` prefix, such as `"float32"`.
        trainable: whether it required a gradient.
        first_row: the first row of its slice of `W`; None for a dense parameter.
        rank: how many rows of `right` all of its rows use, the first ones; None for a dense parameter.
        more_rows: how many of its first rows use one row of `right` more.
        kernels: of a separable convolution, how many spatial kernels it has, each with an entry of `W` for each pair of
            channels. 0 where each weight is an entry of `W`.
        dense_because: why it stays dense; empty for a hashed parameter.
        aliases: further names of the same parameter.

    Example:
        `ParameterPlan("conv1.weight", (64, 3, 7, 7), "float32", first_row=0, rank=8)`: with 1000 columns, 9408
        elements from the beginning of row 0 to the middle of row 9.
    """

    fqn: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool = True
    first_row: int | None = None
    rank: int | None = None
    more_rows: int = 0
    kernels: int = 0
    dense_because: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Shape of its slice of `W`: its own, or that of a separable convolution's weight for pairs of channels."""
        if not self.kernels:
            return self.shape
        return (self.shape[0], self.shape[1] * self.kernels, *[1] * len(self.shape[2:]))

    @property
    def channels(self) -> int:
        """Number of output channels, or of entries of a table: its first size, 1 for a single number."""
        return self.shape[0] if self.shape else 1

    @property
    def slice_numel(self) -> int:
        """Number of entries of `W` that it takes."""
        return math.prod(self.slice_shape)

    @property
    def full_rank(self) -> int:
        """How many rows of `right` its first row uses, the most that any of its rows does; 0 for a dense parameter."""
        return (self.rank or 0) + bool(self.more_rows)

    @property
    def kernels_shape(self) -> tuple[int, int]:
        """How many spatial kernels, and positions of each."""
        return self.kernels, math.prod(self.shape[2:])

    @property
    def hashed(self) -> bool:
        """Whether its values are generated."""
        return not self.dense_because


def kernel_parameters(parameters: Iterable[ParameterPlan]) -> int:
    """Number of elements of the spatial kernels of these parameters."""
    return sum(math.prod(parameter.kernels_shape) for parameter in parameters)


def check_parameter(parameter: ParameterPlan) -> None:
    """Raise PlanError unless each field is of its type, and all are consistent: one of a stored plan may be hostile."""
    well_typed = (
        isinstance(parameter.fqn, str)
        and bool(parameter.fqn)
        and len(parameter.shape) <= _MOST_DIMENSIONS
        and all(is_count(size) for size in parameter.shape)
        and parameter.numel <= LARGEST_COUNT
        and isinstance(parameter.dtype, str)
        and isinstance(getattr(torch, parameter.dtype, None), torch.dtype)
        and isinstance(parameter.trainable, bool)
        and isinstance(parameter.dense_because, str)
        and all(is_count(count) for count in (parameter.more_rows, parameter.kernels))
        and all(isinstance(alias, str) and alias for alias in parameter.aliases)
    )
    if not well_typed:
        raise PlanError(f"a parameter is described wrongly: {parameter!r}")
    if not parameter.hashed:
        if parameter.first_row is not None or parameter.rank is not None or parameter.more_rows or parameter.kernels:
            raise PlanError(f"{parameter.fqn!r} is dense, but has a place in W")
    elif (
        parameter.dtype not in HASHABLE_DTYPES
        or parameter.numel == 0
        or not is_count(parameter.first_row)
        or not is_count(parameter.rank)
    ):
        raise PlanError(f"{parameter.fqn!r} can't be hashed: {parameter!r}")
    elif parameter.kernels and not (len(parameter.shape) > 2 and parameter.kernels <= math.prod(parameter.shape[2:])):
        raise PlanError(f"{parameter.fqn!r} can't be a separable convolution: {parameter!r}")
