"""Let separable convolutions apply their kernels, and then their slice of `W`, instead of a weight made of both."""

from __future__ import annotations

import math

from torch import fx

from fxhash.graph.arguments import all_arguments
from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan
from fxhash.lowering.separable import separable_conv
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource, planned, read, read_right


@graph_pass
def apply_separable(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Replace the function of each convolution that the plan splits."""
    modified = False
    for use, readers in planned(graph_module.graph, plan):
        for convolution in readers if use.split else ():
            given = all_arguments(convolution)
            left, kernels = (read(graph_module, factors, use, role, convolution) for role in ("left", "kernels"))
            right = read_right(graph_module, factors, use, convolution)
            most = {Method.FACTORED: math.inf, Method.GENERATE: -1}.get(use.method)
            most = use.costs.max_positions if most is None else most
            spatial = [given[name] for name in ("bias", "stride", "padding", "dilation")]
            arguments = (given["input"], left, right, kernels, use.parameter.shape, *spatial, most)
            convolution.target, convolution.args, convolution.kwargs = separable_conv, arguments, {}
            modified = True
    return modified
