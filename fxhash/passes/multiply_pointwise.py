"""Let pointwise convolutions be products of matrices."""

from __future__ import annotations

from torch import fx

from fxhash.graph.arguments import all_arguments
from fxhash.graph.layers import CONVOLUTIONS
from fxhash.lowering.convolution import is_pointwise, pointwise
from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan, Reader
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource, planned


@graph_pass
def multiply_pointwise(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Replace the function of each convolution of single pixels whose weight is generated or cached."""
    modified = False
    for use, readers in planned(graph_module.graph, plan):
        if use.method not in (Method.GENERATE, Method.CACHE) or use.reader is not Reader.CONVOLUTION:
            continue
        for layer in readers:
            given = all_arguments(layer) if layer.target in CONVOLUTIONS.values() else {}
            if given.get("groups") == 1 and is_pointwise(use.shape, given["stride"], given["padding"]):
                layer.target, layer.args, layer.kwargs = pointwise, tuple(given[name] for name in _READ), {}
                modified = True
    return modified


_READ = ("input", "weight", "bias")
