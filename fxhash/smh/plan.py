"""What goes where: a frozen, printable, JSON-serialisable description of a compressed model.

A plan is made from names, shapes and types alone, so it costs nothing on the meta device. It is exact: the
transformed model has the number of trainable parameters that its plan states.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from fxhash.errors import PlanError, shown
from fxhash.printable import printable
from fxhash.smh.arithmetic import rows_for
from fxhash.smh.checks import check_aspect, check_fraction, is_count
from fxhash.smh.factor_bits import FactorBits
from fxhash.smh.layout import Layout
from fxhash.smh.parameter_plan import ParameterPlan, check_parameter, kernel_parameters
from fxhash.smh.plan_json import plan_from_json, plan_to_json
from fxhash.tables import text_table

# As accurate as a square within the noise (docs/accuracy.md), and faster when deployed.
DEFAULT_ASPECT = 16.0


@dataclass(frozen=True)
class CompressionPlan:
    """Which parameters are hashed, where each lies in `W = left @ right`, and the exact count of what is trained.

    Attributes:
        parameters: every parameter that the model uses, in the order of `named_parameters()`.
        layout: shape of the two factors.
        compress: the fraction that was asked for.
        aspect: the rows over columns of `W` that were asked for.
        unused: names of parameters that the forward never reads; they are dropped, and not counted.
        factor_bits: in how many bits the factors are computed with and trained; None if they are so as they are.

    Raises:
        PlanError: if parameters overlap, leave rows unused, or don't fit the layout, a field has the wrong type, or the
            fraction that was asked for is exceeded.

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
    factor_bits: FactorBits | None = None

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
        """Number of weights that stay dense and are not trained; in neither total."""
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
        return kernel_parameters(self.hashed)

    @property
    def trainable_after(self) -> int:
        """Number of trainable parameters of the transformed model: factors, kernels, scales and dense ones."""
        return self.factor_parameters + self.kernel_parameters + len(self.hashed) + self.dense_trainable

    def rows_of(self, parameter: ParameterPlan) -> int:
        """Number of rows of `W` that a hashed parameter takes."""
        return rows_for(parameter.slice_numel, self.layout.cols)

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return plan_to_json({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> CompressionPlan:
        """Read what `to_json` wrote.

        Raises:
            PlanError: if the text is not such a plan. Nothing in it is trusted.
        """
        return cls(**plan_from_json(text))

    def table(self) -> list[tuple[str, ...]]:
        """Name, shape, treatment, rows and rank of every parameter, as printable strings, below a heading."""
        rows: list[tuple[str, ...]] = [("parameter", "shape", "treatment", "rows of W", "rank")]
        for parameter in self.parameters:
            treatment, where, rank = f"dense ({printable(parameter.dense_because)})", "", ""
            if parameter.first_row is not None:
                last_row = parameter.first_row + self.rows_of(parameter) - 1
                treatment, where, rank = "hashed", f"{parameter.first_row}..{last_row}", str(parameter.rank)
                treatment += f", separable ({parameter.kernels} kernels)" if parameter.kernels else ""
                rank += f" ({parameter.more_rows} rows {parameter.rank or 0} + 1)" if parameter.more_rows else ""
            names = printable(" = ".join((parameter.fqn, *parameter.aliases)))
            rows.append((names, "x".join(map(str, parameter.shape)) or "scalar", treatment, where, rank))
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
                *([f"factors are computed with in {self.factor_bits}"] if self.factor_bits else []),
                f"trainable before  {self.trainable_before:>15,}",
                f"trainable after   {self.trainable_after:>15,}"
                f"   {self.trainable_after / self.trainable_before:.4%} (asked: at most {self.compress:.4%})",
                f"  factors         {self.factor_parameters:>15,}",
                *([f"  kernels         {self.kernel_parameters:>15,}"] if self.kernel_parameters else []),
                f"  scales          {len(self.hashed):>15,}",
                f"  dense           {self.dense_trainable:>15,}",
                f"frozen, uncounted {self.frozen:>15,}",
                *([f"never used, dropped: {printable(', '.join(self.unused))}"] if self.unused else []),
            ]
        )


def _check_plan(plan: CompressionPlan) -> None:
    """Raise PlanError unless types, sizes, names and slices are consistent; a stored plan may be hostile."""
    _check_types(plan)
    check_fraction(plan.compress)
    check_aspect(plan.aspect)
    _check_layout(plan.layout)
    if not all(isinstance(name, str) for name in plan.unused):
        raise PlanError("the names of unused parameters must be strings")
    names: set[str] = set()
    row = 0
    for parameter in plan.parameters:
        check_parameter(parameter)
        for name in (parameter.fqn, *parameter.aliases):
            if name in names:
                raise PlanError(f"parameter {name!r} is listed twice")
            names.add(name)
        if parameter.hashed:
            _check_place(parameter, row, plan)
            row += plan.rows_of(parameter)
    # Types that differ promote to float32 at least.
    types = {parameter.dtype for parameter in plan.hashed}
    if plan.factor_bits and types in ({"bfloat16"}, {"float16"}):
        raise PlanError(
            f"factors in {plan.factor_bits.bits} bits are trained in float32, not {types.pop()}: convert the model "
            "back, or only when it is lowered, with fxhash.lower_for_deploy(gm, dtype=...)"
        )
    if plan.layout.rows != row or not row:
        raise PlanError(f"the hashed parameters take {row} rows, not {plan.layout.rows}")
    if plan.trainable_after > plan.compress * plan.trainable_before * (1 + 1e-9):
        raise PlanError(
            f"{plan.trainable_after:,} parameters after, of {plan.trainable_before:,} before, are more than "
            f"compress={plan.compress!r} allows"
        )


def _check_types(plan: CompressionPlan) -> None:
    described = isinstance(plan.parameters, tuple) and all(isinstance(each, ParameterPlan) for each in plan.parameters)
    if not described or not isinstance(plan.unused, tuple) or not isinstance(plan.layout, Layout):
        raise PlanError(
            f"a plan has a tuple of ParameterPlans, a Layout and a tuple of names, not {shown(plan.parameters)}, "
            f"{shown(plan.layout)} and {shown(plan.unused)}"
        )
    if not isinstance(plan.factor_bits, FactorBits | None):
        raise PlanError(f"factor_bits={shown(plan.factor_bits)} are no FactorBits")


def _check_layout(layout: Layout) -> None:
    sizes = (layout.rows, layout.cols, layout.rank)
    if not all(is_count(size) and size > 0 for size in sizes):
        raise PlanError(f"the layout must be three positive whole numbers, not {sizes!r}")
    if layout.rank > min(layout.rows, layout.cols):
        raise PlanError(f"rank {layout.rank} is more than a {layout.rows} x {layout.cols} matrix can have")


def _check_place(parameter: ParameterPlan, row: int, plan: CompressionPlan) -> None:
    """Check where a hashed parameter lies in `W`, and its rank; `row` is the first that is free."""
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
