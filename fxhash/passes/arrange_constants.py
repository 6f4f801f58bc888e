"""Write a lowered model's layers for a runtime that computes constants once, such as ONNX Runtime."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.nn import functional as F

from fxhash.graph.arguments import all_arguments
from fxhash.graph.layers import CONVOLUTIONS
from fxhash.lowering.constant_layers import (
    constant_conv,
    constant_pointwise_conv,
    constant_separable_conv,
)
from fxhash.lowering.functional import adaptive_conv, adaptive_linear, depthwise, factored_conv
from fxhash.passes.contract import graph_pass
from fxhash.smh.arithmetic import generate

_SPATIAL = ("stride", "padding", "dilation")


@graph_pass
def arrange_constants(graph_module: fx.GraphModule) -> bool:
    """Replace layers that apply factors by such with constant kernels, and generate what adaptive layers need.

    An adaptive layer takes less work with its weight, once that is there: the runtime generates it when it loads.
    """
    modified = False
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and node.target in (adaptive_linear, adaptive_conv):
            _use_weight(node)
            modified = True
        if node.op == "call_function" and node.target in (factored_conv, *CONVOLUTIONS.values()):
            modified |= _arrange(node)
    return modified


def _use_weight(node: fx.Node) -> None:
    """Let an adaptive layer read its generated weight."""
    given = all_arguments(node)
    with node.graph.inserting_before(node):
        weight = node.graph.call_function(generate, (given["left"], given["right"], given["shape"]))
    is_linear = node.target is adaptive_linear
    node.target = F.linear if is_linear else CONVOLUTIONS[len(given["shape"]) - 2]
    spatial = () if is_linear else tuple(given[name] for name in _SPATIAL)
    node.args, node.kwargs = (given["x"], weight, given["bias"], *spatial), {}


def _arrange(node: fx.Node) -> bool:
    """Replace a factored convolution, or one that reads a depthwise one; both at once where both are there."""
    given = all_arguments(node)
    is_factored = node.target is factored_conv
    x = given["x" if is_factored else "input"]
    if not isinstance(x, fx.Node) or x.target is not depthwise:
        node.target = constant_conv if is_factored else node.target
        return is_factored
    first = all_arguments(x)
    weights = ("left", "right") if is_factored else ("weight",)
    arguments: tuple[Any, ...] = (first["x"], first["kernels"], *(given[name] for name in weights))
    node.target = constant_separable_conv if is_factored else constant_pointwise_conv
    node.args = (*arguments, first["shape"], given["bias"], *(first[name] for name in _SPATIAL))
    node.kwargs = {}
    if not x.users:
        node.graph.erase_node(x)
    return True
