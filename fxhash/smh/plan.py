"""What goes where: a frozen, printable, JSON-serialisable description of a compressed model.

A plan is made from names, shapes and types alone, so it costs nothing on the meta device. It is exact: the
transformed model has the number of trainable parameters that its plan states.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from fxhash.errors import PlanError
from fxhash.smh.arithmetic import rows_for
from fxhash.smh.layout import Layout
from fxhash.tables import text_table

FORMAT_VERSION = 1
# As accurate as a square within the noise (docs/accuracy.md), and faster when deployed.
DEFAULT_ASPECT = 16.0
HASHABLE_DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ParameterPlan:
    """One parameter of the original model.

    Attributes:
        fqn: fully qualified name in the original model; of tied names, the first.
        shape: the parameter's shape.
        dtype: the parameter's type without the `torch.` prefix, such as `"float32"`.
        trainable: whether it required a gradient.
        first_row: the row of `W` where it starts; None for a dense parameter.
        rank: how many rows of `right` all of its rows use, the first ones; None for a dense parameter.
        more_rows: how many of its first rows use one row of `right` more.
        kernels: of a separable convolution, how many spatial kernels it has, each with an entry of `W` for each pair of
            channels. 0 where each weight is an entry of `W`.
        dense_because: why it stays dense; empty for a hashed parameter.
        aliases: further names of the same parameter.

    Example:
        `ParameterPlan("conv1.weight", (64, 3, 7, 7), "float32", first_row=0, rank=8)`: with 1000 columns, 9408
        elements from the start of row 0 to the middle of row 9.
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
        """Shape of its run of `W`: its own, or that of a separable convolution's weight for pairs of channels."""
        if not self.kernels:
            return self.shape
        return (self.shape[0], self.shape[1] * self.kernels, *[1] * len(self.shape[2:]))

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


@dataclass(frozen=True)
class CompressionPlan:
    """Which parameters are hashed, where each lies in `W = left @ right`, and the exact count of what is trained.

    Attributes:
        parameters: every parameter that the model uses, in the order of `named_parameters()`.
        layout: shape of the two factors.
        compress: the fraction that was asked for.
        aspect: the rows over columns of `W` that were asked for.
        unused: names of parameters that the forward never reads; they are dropped, and not counted.

    Raises:
        PlanError: if parameters overlap, leave rows unused, or don't fit the layout, or a field has the wrong type.

    Example:
        >>> from fxhash.smh.planning import plan_parameters
        >>> plan = plan_parameters([ParameterPlan("fc.weight", (100, 100), "float32")], compress=0.1)
        >>> plan.trainable_before, plan.trainable_after, plan.layout
        (10000, 1000, Layout(rows=400, cols=25, rank=3))
        >>> CompressionPlan.from_json(plan.to_json()) == plan
        True
    """

    parameters: tuple[ParameterPlan, ...]
    layout: Layout
    compress: float
    aspect: float
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_plan(self)

    @cached_property
    def hashed(self) -> tuple[ParameterPlan, ...]:
        """The parameters whose values are generated, in order of their rows."""
        return tuple(parameter for parameter in self.parameters if parameter.hashed)

    @property
    def dense(self) -> tuple[ParameterPlan, ...]:
        """The parameters that stay as they are, trainable or frozen."""
        return tuple(parameter for parameter in self.parameters if not parameter.hashed)

    @property
    def hashed_before(self) -> int:
        """Number of weights that are generated."""
        return sum(parameter.numel for parameter in self.hashed)

    @property
    def dense_trainable(self) -> int:
        """Number of trainable weights that stay dense."""
        return sum(parameter.numel for parameter in self.dense if parameter.trainable)

    @property
    def frozen(self) -> int:
        """Number of weights that are kept dense and not trained; in neither total."""
        return sum(parameter.numel for parameter in self.dense if not parameter.trainable)

    @property
    def trainable_before(self) -> int:
        """Number of trainable parameters of the original model."""
        return self.hashed_before + self.dense_trainable

    @property
    def factor_parameters(self) -> int:
        """Number of elements of both factors."""
        left = sum(self.rows_of(parameter) * (parameter.rank or 0) + parameter.more_rows for parameter in self.hashed)
        return left + self.layout.rank * self.layout.cols

    @property
    def kernel_parameters(self) -> int:
        """Number of elements of all spatial kernels of separable convolutions."""
        return _kernel_parameters(self.hashed)

    @property
    def trainable_after(self) -> int:
        """Number of trainable parameters of the transformed model: factors, kernels, scales and dense ones."""
        return self.factor_parameters + self.kernel_parameters + len(self.hashed) + self.dense_trainable

    def rows_of(self, parameter: ParameterPlan) -> int:
        """Number of rows of `W` that a hashed parameter takes."""
        return rows_for(parameter.slice_numel, self.layout.cols)

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        fields = {
            "format": FORMAT_VERSION,
            "compress": self.compress,
            "aspect": self.aspect,
            "layout": asdict(self.layout),
            "unused": self.unused,
            "parameters": [
                {name: value for name, value in asdict(parameter).items() if value != _DEFAULTS.get(name, ...)}
                for parameter in self.parameters
            ],
        }
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> CompressionPlan:
        """Read what `to_json` wrote.

        Raises:
            PlanError: if the text is not such a plan. Nothing in it is trusted.
        """
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT_VERSION:
                raise PlanError(
                    f"the plan has format {fields['format']!r}, this fxhash reads format {FORMAT_VERSION}: "
                    "use the version of fxhash that wrote it"
                )
            return cls(
                parameters=tuple(_parameter_from_json(parameter) for parameter in fields["parameters"]),
                layout=Layout(**fields["layout"]),
                compress=fields["compress"],
                aspect=fields["aspect"],
                unused=tuple(fields["unused"]),
            )
        except PlanError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PlanError(f"this is not a plan of fxhash: {type(error).__name__}: {error}") from error

    def table(self) -> list[tuple[str, ...]]:
        """Name, shape, treatment, rows and rank of every parameter, as texts; the first row is the heading."""
        rows: list[tuple[str, ...]] = [("parameter", "shape", "kept as", "rows of W", "rank")]
        for parameter in self.parameters:
            kept, where, rank = f"dense ({parameter.dense_because})", "", ""
            if parameter.first_row is not None:
                last_row = parameter.first_row + self.rows_of(parameter) - 1
                kept, where, rank = "hashed", f"{parameter.first_row}..{last_row}", str(parameter.rank)
                kept += f", separable ({parameter.kernels} kernels)" if parameter.kernels else ""
                rank += f" ({parameter.more_rows} rows {parameter.rank or 0} + 1)" if parameter.more_rows else ""
            names = " = ".join((parameter.fqn, *parameter.aliases))
            rows.append((names, "x".join(map(str, parameter.shape)) or "scalar", kept, where, rank))
        return rows

    def __str__(self) -> str:
        return f"{text_table(self.table(), underline=True)}\n\n{self.totals()}"

    def totals(self) -> str:
        """The counts, as a paragraph of text."""
        layout = self.layout
        return "\n".join(
            [
                f"W = left @ right: {layout.rows} x {layout.cols}, rank {layout.rank}, "
                f"generates {self.hashed_before:,} weights of {len(self.hashed)} parameters",
                f"trainable before  {self.trainable_before:>15,}",
                f"trainable after   {self.trainable_after:>15,}"
                f"   {self.trainable_after / self.trainable_before:.4%} (asked: at most {self.compress:.4%})",
                f"  factors         {self.factor_parameters:>15,}",
                *([f"  kernels         {self.kernel_parameters:>15,}"] if self.kernel_parameters else []),
                f"  scales          {len(self.hashed):>15,}",
                f"  kept dense      {self.dense_trainable:>15,}",
                f"frozen, uncounted {self.frozen:>15,}",
                *([f"never used, dropped: {', '.join(self.unused)}"] if self.unused else []),
            ]
        )


_DEFAULTS: dict[str, Any] = {
    "trainable": True,
    "first_row": None,
    "rank": None,
    "more_rows": 0,
    "kernels": 0,
    "dense_because": "",
    "aliases": (),
}


def _kernel_parameters(parameters: Iterable[ParameterPlan]) -> int:
    return sum(math.prod(parameter.kernels_shape) for parameter in parameters)


def _check_fraction(compress: float) -> None:
    if not _is_number(compress) or not 0 < compress <= 1:
        raise PlanError(
            f"compress={compress!r} is not a fraction: give trainable parameters after over before, "
            "more than 0 and at most 1, such as compress=0.1"
        )


def _check_aspect(aspect: float) -> None:
    if not _is_number(aspect) or not 0 < aspect < math.inf:
        raise PlanError(f"aspect={aspect!r} is not a positive, finite number: 1 is square, 4 is four times as tall")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _parameter_from_json(fields: dict[str, Any]) -> ParameterPlan:
    parameter = ParameterPlan(**fields)
    return replace(parameter, shape=tuple(parameter.shape), aliases=tuple(parameter.aliases))


def _check_plan(plan: CompressionPlan) -> None:
    """Raise PlanError unless types, sizes, names and runs are consistent; a stored plan may be hostile."""
    _check_fraction(plan.compress)
    _check_aspect(plan.aspect)
    sizes = (plan.layout.rows, plan.layout.cols, plan.layout.rank)
    if not all(_is_count(size) and size > 0 for size in sizes):
        raise PlanError(f"the layout must be three positive whole numbers, not {sizes!r}")
    if not all(isinstance(name, str) for name in plan.unused):
        raise PlanError("the names of unused parameters must be text")
    if plan.layout.rank > min(plan.layout.rows, plan.layout.cols):
        raise PlanError(
            f"rank {plan.layout.rank} is more than a {plan.layout.rows} x {plan.layout.cols} matrix can have"
        )
    names: set[str] = set()
    row = 0
    for parameter in plan.parameters:
        _check_parameter(parameter)
        for name in (parameter.fqn, *parameter.aliases):
            if name in names:
                raise PlanError(f"parameter {name!r} is listed twice")
            names.add(name)
        if parameter.hashed:
            if parameter.first_row != row:
                raise PlanError(
                    f"{parameter.fqn!r} starts at row {parameter.first_row!r}, but the one before it ends at {row}: "
                    "parameters must follow each other"
                )
            rank = parameter.rank or 0
            if not 0 < rank <= plan.layout.rank:
                raise PlanError(f"{parameter.fqn!r} has rank {rank} in a layout of rank {plan.layout.rank}")
            if parameter.more_rows and not (rank < plan.layout.rank and parameter.more_rows < plan.rows_of(parameter)):
                raise PlanError(f"{parameter.fqn!r} can't have {parameter.more_rows} rows of a higher rank")
            row += plan.rows_of(parameter)
    if plan.layout.rows != row or not row:
        raise PlanError(f"the hashed parameters take {row} rows, not {plan.layout.rows}")


def _check_parameter(parameter: ParameterPlan) -> None:
    well_typed = (
        isinstance(parameter.fqn, str)
        and bool(parameter.fqn)
        and all(_is_count(size) for size in parameter.shape)
        and isinstance(parameter.dtype, str)
        and isinstance(getattr(torch, parameter.dtype, None), torch.dtype)
        and isinstance(parameter.trainable, bool)
        and isinstance(parameter.dense_because, str)
        and all(_is_count(count) for count in (parameter.more_rows, parameter.kernels))
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
        or not _is_count(parameter.first_row)
        or not _is_count(parameter.rank)
    ):
        raise PlanError(f"{parameter.fqn!r} can't be hashed: {parameter!r}")
    elif parameter.kernels and not (len(parameter.shape) > 2 and parameter.kernels <= math.prod(parameter.shape[2:])):
        raise PlanError(f"{parameter.fqn!r} can't be a separable convolution: {parameter!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
