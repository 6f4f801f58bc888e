"""A model with its transformed models lowered for inference."""

from __future__ import annotations

from collections.abc import Mapping

from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.lowering.method import Method
from fxhash.lowering.shared_budget import plan_lowerings
from fxhash.original import pass_on
from fxhash.passes import lower
from fxhash.transformed import AnyModule, sharing_copy, transformed_graph, transformed_parts, with_parts


def lowered_parts(
    model: AnyModule,
    requested: Mapping[str, Mapping[str, Method]],
    budget: int | None,
    options: LoweringOptions,
) -> AnyModule:
    """A model with its transformed models lowered; it is left untouched, and shares what is not lowered.

    Args:
        model: a transformed model or one that holds some, in eval mode.
        requested: for the path of each transformed model, the methods that were asked for.
        budget: bytes for the weights of all of them; as of `plan_lowering`.
        options: what it is lowered for; positions only where the model itself is a transformed one.
    """
    parts = {path: transformed_graph(part) for path, part in transformed_parts(model).items()}
    requests = [(part, requested[path]) for path, part in parts.items()]
    plans = plan_lowerings(requests, budget, options)
    lowered = {path: pass_on(lower(part, plan)) for (path, part), plan in zip(parts.items(), plans, strict=True)}
    if "" in lowered:
        return with_parts(model, {model: lowered[""]})
    copied = sharing_copy(model)
    return with_parts(copied, {part: lowered[path] for path, part in transformed_parts(copied).items()})
