"""The search for a plan: which convolutions are separable, the shape of `W`, and a place for each parameter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, Context

from fxhash.errors import BudgetError, PlanError
from fxhash.smh.arithmetic import rows_for
from fxhash.smh.checks import check_aspect, check_fraction
from fxhash.smh.layout import FilledLayout, candidate_columns, choose_layout, least_parameters
from fxhash.smh.parameter_plan import ParameterPlan, kernel_parameters
from fxhash.smh.plan import DEFAULT_ASPECT, CompressionPlan
from fxhash.smh.ranks import ChosenRanks

# A separable convolution has as many kernels as bring trained parameters over entries of `W` near to this density, and
# two at least if that is possible (docs/accuracy.md).
_ENTRY_DENSITY = 0.4
_LEAST_KERNELS = 2
# The layout search stops at the first shape with which the model uses this share of its budget. A small budget is a few
# ranks: there, row-aligned columns are worth more than the last parameters.
_GOOD_USE, _GOOD_USE_OF_SMALL, _SMALL_BUDGET = 0.99, 0.95, 10_000

# How many lengths of output channels are tried as those of rows of `W` where there is a choice, and up to which: a fit
# takes memory with the square of it. An embedding of positions, one channel of 150,000 entries, would ask for 180 GB.
_LENGTHS, _LONGEST = 3, 8192


def plan_parameters(
    parameters: Iterable[ParameterPlan],
    compress: float,
    aspect: float = DEFAULT_ASPECT,
    unused: Iterable[str] = (),
    convolutions: Collection[str] = (),
) -> CompressionPlan:
    """Lay the hashed ones among `parameters` out in rows, and choose factors that use the budget.

    The budget counts everything that is trained afterwards: factors, kernels, one scale a hashed parameter, and
    whatever stays dense. Near the requested aspect, the number of columns is chosen such that it divides, or is divided
    by, the weights of an output channel of as many layers as can be: rows of `W` then belong to one channel, or hold
    several of them.

    A weight of `convolutions` with at least as many input channels as positions in its kernel becomes separable where
    the budget is small: `weight[o, i] = sum(W[o, i, k] * kernel[k] for k in range(kernels))`. It has as many kernels as
    leave the entries of `W` a few times as many as the parameters that they come from.

    Args:
        parameters: what the model's forward uses; their places are ignored.
        compress: trainable parameters after over before, in (0, 1].
        aspect: rows over columns of `W`; 1 is the square of the paper, more is taller. Generating costs
            `2 * rank` FLOP a weight, and a taller `W` has a smaller rank for the same budget.
        unused: names of parameters that the forward never reads, for the record.
        convolutions: names of parameters that are weights of convolutions without groups, and nothing else.

    Raises:
        PlanError: for a `compress` or `aspect` out of range, or if no parameter is hashed.
        BudgetError: if the budget is too small; it names the smallest that is enough.
    """
    check_fraction(compress)
    check_aspect(aspect)
    parameters = tuple(replace(parameter, kernels=0) for parameter in parameters)
    hashed = [parameter for parameter in parameters if parameter.hashed]
    if not hashed:
        raise PlanError(_nothing_to_hash(parameters))
    dense = sum(parameter.numel for parameter in parameters if not parameter.hashed and parameter.trainable)
    before = sum(parameter.numel for parameter in hashed) + dense
    budget = _budget(compress, before)
    good_use = _GOOD_USE if budget >= _SMALL_BUDGET else _GOOD_USE_OF_SMALL
    least: list[int] = []
    for kernels in _numbers_of_kernels(hashed, convolutions, budget - dense):
        described = [_with_kernels(parameter, convolutions, kernels) for parameter in parameters]
        hashed = [parameter for parameter in described if parameter.hashed]
        available = budget - dense - kernel_parameters(hashed)
        candidates = candidate_columns([parameter.slice_shape for parameter in hashed], aspect)
        sizes = [parameter.slice_numel for parameter in hashed]
        layout = choose_layout(sizes, candidates, good_use * budget - (budget - available), available)
        if layout is not None:
            places = tuple(_with_places(described, layout))
            return CompressionPlan(places, layout.shape, float(compress), float(aspect), tuple(unused))
        least.append(least_parameters(sizes, candidates) - len(hashed) + kernel_parameters(hashed))
    raise _budget_error(compress, before, budget, dense, len(hashed), min(least))


def other_plans(plan: CompressionPlan, convolutions: Collection[str], aspect: float | None) -> list[CompressionPlan]:
    """Further plans for the same parameters and budget, for what can tell which is best.

    Rows of `W` that are as long as an output channel of many weights, where `aspect` leaves it open, and convolutions
    that are not separable.

    Args:
        plan: of `plan_parameters`.
        convolutions: as of `plan_parameters`.
        aspect: the one that is wanted; None for any.
    """
    weights: Counter[int] = Counter()
    for parameter in plan.hashed:
        weights[parameter.numel // parameter.channels] += parameter.numel
    lengths = [length for length, _ in weights.most_common(_LENGTHS)]
    aspects = [plan.aspect] if aspect is not None else [plan.aspect, *(plan.hashed_before / n**2 for n in lengths)]
    separable = any(parameter.kernels for parameter in plan.hashed)
    found = [plan]
    for wanted in aspects:
        for names in (convolutions, ()) if separable else ((),):
            try:
                other = plan_parameters(plan.parameters, plan.compress, wanted, plan.unused, names)
            except BudgetError:
                continue
            is_new = all((other.layout, other.hashed) != (each.layout, each.hashed) for each in found)
            if is_new and other.layout.cols <= _LONGEST:
                found.append(other)
    return found[1:]


def highest_rank(plan: CompressionPlan, parameter: ParameterPlan) -> int:
    """The highest rank that is of use to a hashed parameter of a plan."""
    return max((parameter.slice_numel - 1) // plan.rows_of(parameter), 1)


def with_ranks(plan: CompressionPlan, chosen: ChosenRanks) -> CompressionPlan:
    """The plan with other ranks of its hashed parameters, in their order."""
    layout = FilledLayout(replace(plan.layout, rank=chosen.of_right), chosen.ranks, chosen.more_rows, chosen.parameters)
    return replace(plan, parameters=tuple(_with_places(plan.parameters, layout)), layout=layout.shape)


def _numbers_of_kernels(hashed: Sequence[ParameterPlan], convolutions: Collection[str], budget: int) -> list[int]:
    """Kernels of separable convolutions to try, best first; 0 for no separable ones."""
    entries = sum(_with_kernels(parameter, convolutions, 1).slice_numel for parameter in hashed)
    kernels = max(round(budget / entries / _ENTRY_DENSITY), _LEAST_KERNELS)
    return list(dict.fromkeys([kernels, _LEAST_KERNELS, 1, 0]))


def _with_kernels(parameter: ParameterPlan, convolutions: Collection[str], kernels: int) -> ParameterPlan:
    """The parameter as a separable convolution of so many kernels, if it can and should be one."""
    channels, positions = math.prod(parameter.shape[1:2]), math.prod(parameter.shape[2:])
    can_be = parameter.hashed and parameter.fqn in convolutions and 1 < positions <= channels
    return replace(parameter, kernels=kernels) if can_be and kernels < positions / 2 else parameter


def _with_places(parameters: Sequence[ParameterPlan], layout: FilledLayout) -> Iterable[ParameterPlan]:
    row = 0
    places = zip(layout.ranks, layout.more_rows, strict=True)
    for parameter in parameters:
        if parameter.hashed:
            rank, more_rows = next(places)
            yield replace(parameter, first_row=row, rank=rank, more_rows=more_rows)
            row += rows_for(parameter.slice_numel, layout.shape.cols)
        else:
            yield replace(parameter, first_row=None, rank=None, more_rows=0)


def _nothing_to_hash(parameters: Sequence[ParameterPlan]) -> str:
    if not parameters:
        return "the model has no parameters that its forward uses: there is nothing to compress"
    reasons = sorted({parameter.dense_because for parameter in parameters})
    return (
        f"no parameter is left to hash: all {len(parameters)} stay dense ({'; '.join(reasons)}). "
        "Choose some with include=..., or exclude fewer"
    )


def _budget(compress: float, before: int) -> int:
    """The largest count with `count / before <= compress`, as floating point divides."""
    budget = int(compress * before)
    while (budget + 1) / before <= compress:
        budget += 1
    while budget / before > compress:
        budget -= 1
    return budget


def _budget_error(compress: float, before: int, budget: int, dense: int, scales: int, factors: int) -> BudgetError:
    needed = dense + scales + factors
    smallest = needed / before
    message = (
        f"compress={compress!r} of {before:,} trainable parameters allows {budget:,}, but the least that this "
        f"model can have is {needed:,}: {dense:,} stay dense, {scales:,} scales, and {factors:,} in factors of "
        "rank 1. "
    )
    if smallest > 1:
        return BudgetError(message + "That is more than it has now: it is too small to compress", smallest)
    shown = Context(prec=4, rounding=ROUND_CEILING).create_decimal_from_float(smallest)
    return BudgetError(
        message + f"Use compress={min(float(shown), 1.0)!r} or more, or hash more of it with include=...",
        smallest,
    )
