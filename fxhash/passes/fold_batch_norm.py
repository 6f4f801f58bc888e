"""Fold evaluated batch norms into the weight and the bias of the convolution before them."""

from __future__ import annotations

from torch import fx

from fxhash.graph.arguments import set_argument
from fxhash.graph.names import free_name
from fxhash.lowering.batch_norm import foldable_norm
from fxhash.lowering.functional import scale_channels
from fxhash.lowering.plan import LoweringPlan
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource, planned, read, weight_of


@graph_pass
def fold_batch_norm(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Scale the weight's channels and replace the bias, for each batch norm that the plan folds.

    The scale is a node of its own until a later pass computes the weight with the scale in it.
    """
    graph, modified = graph_module.graph, False
    for use, (convolution, *_) in planned(graph, plan):
        norm = foldable_norm(graph_module, convolution) if use.folded_norm else None
        if norm is None:
            continue
        name = free_name(graph_module, "norm_scale")
        graph_module.register_buffer(name, norm.scale())
        with graph.inserting_before(convolution):
            scale = graph.get_attr(name)
            scaled = graph.call_function(scale_channels, (weight_of(use, convolution), scale))
        set_argument(convolution, "weight", scaled)
        set_argument(convolution, "bias", read(graph_module, factors, use, "bias", before=convolution))
        norm.node.replace_all_uses_with(convolution)
        graph.erase_node(norm.node)
        modified = True
    return modified
