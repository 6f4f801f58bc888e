"""Replace generated weights by stored ones."""

from __future__ import annotations

from torch import fx

from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource, planned, read, weight_of


@graph_pass
def cache_weights(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Let the nodes that read a weight which the plan caches read the stored one."""
    modified = False
    for use, readers in planned(graph_module.graph, plan):
        if use.method is Method.CACHE:
            cached = read(graph_module, factors, use, "weight", before=readers[0])
            for reader in readers:
                reader.replace_input_with(weight_of(use, reader), cached)
            modified = True
    return modified
