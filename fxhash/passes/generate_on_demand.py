"""Generate each weight that is still needed right before its first reader."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan, WeightUse
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import USE, FactorSource, planned, read, read_right, weight_of
from fxhash.smh.arithmetic import generate, separable


@graph_pass
def generate_on_demand(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Replace calls of the generator by the arithmetic on the stored factors, where the plan generates a weight."""
    modified = False
    for use, readers in planned(graph_module.graph, plan):
        if use.method is Method.GENERATE and use.module is None:
            weight = _generated(graph_module, use, factors, readers[0])
            weight.meta[USE] = use
            for reader in readers:
                reader.replace_input_with(weight_of(use, reader), weight)
            modified = True
    return modified


def _generated(graph_module: fx.GraphModule, use: WeightUse, factors: FactorSource, before: fx.Node) -> fx.Node:
    """The node of a generated weight, before another node."""
    graph = graph_module.graph

    def stored(role: str) -> fx.Node:
        return read(graph_module, factors, use, role, before)

    is_separable = use.parameter.kernels > 0 and not use.split
    shift = stored("shift") if use.stores("shift") else None
    options: dict[str, Any] = {} if shift is None or is_separable else {"shift": shift}
    if use.stores("channel scale"):
        options["channel_scale"] = stored("channel scale")
    left, right = stored("left"), read_right(graph_module, factors, use, before)
    with graph.inserting_before(before):
        weight = graph.call_function(generate, (left, right, use.parameter.slice_shape), options)
    if is_separable:
        kernels = stored("kernels")
        with graph.inserting_before(before):
            weight = graph.call_function(separable, (weight, kernels, use.parameter.shape))
            weight = weight if shift is None else graph.call_function(operator.add, (weight, shift))
    if use.cast is not None:
        with graph.inserting_before(before):
            weight = graph.call_method("to", (weight, use.cast))
    return weight
