"""Write a lowered model's layers for a runtime that computes constants once, such as ONNX Runtime."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxhash.graph.arguments import all_arguments
from fxhash.graph.layers import CONVOLUTIONS
from fxhash.lowering.constant_layers import (
    constant_conv,
    constant_pointwise_conv,
    constant_separable_conv,
    linear_apart,
    linear_of_apart,
)
from fxhash.lowering.convolution import depthwise, pointwise
from fxhash.lowering.factor_store import find_factor_store
from fxhash.lowering.functional import adaptive_conv, adaptive_linear, factored_conv, factored_linear
from fxhash.lowering.input_check import checked_input
from fxhash.passes.contract import graph_pass
from fxhash.smh.arithmetic import generate

# What treats all features alike.
_ELEMENTWISE = {F.gelu, F.relu, F.silu, F.dropout, torch.relu, torch.sigmoid, torch.tanh, checked_input}
_ELEMENTWISE_MODULES = (nn.GELU, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Dropout, nn.Identity)
_SPATIAL = ("stride", "padding", "dilation")


@graph_pass
def arrange_constants(graph_module: fx.GraphModule) -> bool:
    """Replace layers that apply factors by such with constant kernels, and generate what adaptive layers need.

    An adaptive layer takes less work with its weight, once that is there: the runtime generates it when it loads.
    """
    modified = _leave_apart(graph_module)
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and node.target in (adaptive_linear, adaptive_conv):
            _use_weight(node)
            modified = True
        if node.op == "call_function" and node.target in (factored_conv, pointwise, *CONVOLUTIONS.values()):
            modified |= _arrange(node)
    return modified


def _leave_apart(graph_module: fx.GraphModule) -> bool:
    """Let features stay out of order between two factored linear layers, where nothing between tells them apart."""
    store = find_factor_store(graph_module)
    pairs = {} if store is None else _pairs(graph_module, store.right.shape[1])
    for first, (second, parts) in pairs.items():
        first.target, second.target = linear_apart, linear_of_apart
        given = all_arguments(second)
        second.args = (*(given[name] for name in ("x", "left", "right", "shape", "bias")), parts)
    return bool(pairs)


def _pairs(graph_module: fx.GraphModule, cols: int) -> dict[fx.Node, tuple[fx.Node, int]]:
    """Linear layers of which a row of `W` holds several features, the next one of these, and how many."""
    pairs: dict[fx.Node, tuple[fx.Node, int]] = {}
    for node in graph_module.graph.nodes:
        if node.target is not factored_linear:
            continue
        out, features = all_arguments(node)["shape"]
        parts, reader = cols // features, _reader_of_all(graph_module, node)
        if parts <= 1 or out % parts or cols % out or reader is None or reader.target is not factored_linear:
            continue
        # A layer that reads another's features out of order gives its own in order.
        is_free = node not in {second for second, _ in pairs.values()}
        if is_free and all_arguments(reader)["shape"][1] == out:
            pairs[node] = (reader, parts)
    return pairs


def _reader_of_all(graph_module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The only node that reads a value, through whatever treats its entries alike; None if there are several."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.all_input_nodes[0] is not node or (user.args and user.args[0] is not node):
            return None
        called = graph_module.get_submodule(str(user.target)) if user.op == "call_module" else None
        if type(called) not in _ELEMENTWISE_MODULES and user.target not in _ELEMENTWISE:
            return user
        node = user
    return None


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
