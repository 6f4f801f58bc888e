"""One memory budget for several transformed models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import fx

from fxhash.errors import MemoryBudgetError
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.lowering_options import FOR_INFERENCE, LoweringOptions
from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan


def plan_lowerings(
    models: Sequence[tuple[fx.GraphModule, Mapping[str, Method]]],
    budget: int | None = 0,
    options: LoweringOptions = FOR_INFERENCE,
) -> list[LoweringPlan]:
    """The plans of several transformed models that share a memory budget: the first may use what the others don't need.

    Args:
        models: each in eval mode, with the methods that were asked for.
        budget: bytes for the weights of all of them; 0 and None as of `plan_lowering`, for each.
        options: what they are lowered for; positions are those of a single model.

    Raises:
        MemoryBudgetError: if the budget is too small; it names the least that is enough.
        PlanError: as of `plan_lowering`.
    """
    plan = partial(plan_lowering, options=options)
    if len(models) == 1 or not budget:
        return [plan(gm, requested, budget) for gm, requested in models]
    least = [plan(gm, requested).peak_bytes for gm, requested in models]
    left = budget - sum(least)
    if left < 0:
        raise MemoryBudgetError(
            f"memory_budget={budget:,} bytes is less than the {sum(least):,} that the weights of these "
            f"{len(models)} models take at a time",
            sum(least),
        )
    plans = []
    for (gm, requested), needed in zip(models, least, strict=True):
        plans.append(plan(gm, requested, needed + left))
        left -= plans[-1].peak_bytes - needed
    return plans
