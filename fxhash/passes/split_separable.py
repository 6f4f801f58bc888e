"""Split separable convolutions of many channels into a depthwise convolution and a pointwise one."""

from __future__ import annotations

from torch import fx

from fxhash.graph.arguments import all_arguments
from fxhash.lowering.convolution import depthwise
from fxhash.lowering.factor_store import FactorStore
from fxhash.lowering.plan import LoweringPlan
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import planned, read, weight_of


@graph_pass
def split_separable(graph_module: fx.GraphModule, plan: LoweringPlan, store: FactorStore) -> bool:
    """Let each convolution that the plan splits read a depthwise one, and a slice of `W` as its pointwise weight."""
    splitting = [
        (use, convolution)
        for use, readers in planned(graph_module.graph, plan)
        for convolution in readers
        if use.split and all_arguments(convolution)["input"].target is not depthwise
    ]
    for use, convolution in splitting:
        given, weight = all_arguments(convolution), weight_of(use, convolution)
        kernels = read(graph_module, store, use, "kernels", before=convolution)
        spatial = (given["stride"], given["padding"], given["dilation"])
        with graph_module.graph.inserting_before(convolution):
            arguments = (given["input"], kernels, use.parameter.shape, *spatial)
            first = graph_module.graph.call_function(depthwise, arguments)
        weight.args = (use.fqn, "pointwise")
        convolution.args, convolution.kwargs = (first, weight, given["bias"]), {}
    return bool(splitting)
