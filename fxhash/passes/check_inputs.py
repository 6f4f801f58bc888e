"""Let each layer that the plan computes a weight for say what it takes, where it is given something else."""

from __future__ import annotations

from torch import fx
from torch.nn import functional as F

from fxhash.graph.arguments import all_arguments, set_argument
from fxhash.graph.layers import is_plain_layer_of
from fxhash.lowering.convolution import depthwise
from fxhash.lowering.input_check import checked_input
from fxhash.lowering.plan import LoweringPlan
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource, planned, weight_of


@graph_pass
def check_inputs(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Check the input of each linear layer, convolution and embedding of the graph."""
    modified = False
    for use, readers in planned(graph_module.graph, plan):
        # A generated weight that is tied may have readers of several kinds.
        for layer in readers if use.module is None else ():
            if not is_plain_layer_of(weight_of(use, layer), layer):
                continue
            given = all_arguments(layer)["input"]
            if not isinstance(given, fx.Node) or given.target in (checked_input, depthwise):
                continue
            arguments = (given, use.fqn, use.parameter.shape, layer.target is F.embedding)
            with graph_module.graph.inserting_before(layer):
                set_argument(layer, "input", graph_module.graph.call_function(checked_input, arguments))
            modified = True
    return modified
