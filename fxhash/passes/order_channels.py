"""Let the channels of images come last in memory where that is fast, and nowhere else."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Container, Iterable

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from fxhash.graph.in_place import add_, mul_, sub_, truediv_
from fxhash.graph.layers import CONVOLUTIONS
from fxhash.graph.liveness import changed_in_place, is_changed_in_place, memory_sources
from fxhash.graph.sharing import shared_inputs
from fxhash.lowering.convolution import depthwise, pointwise
from fxhash.lowering.functional import adaptive_conv, adaptive_linear, factored_conv, factored_linear
from fxhash.lowering.input_check import checked_input
from fxhash.lowering.memory_format import channels_last
from fxhash.lowering.plan import LoweringPlan
from fxhash.lowering.separable import reorder_gradient, separable_conv
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource
from fxhash.smh.regeneration import call_regenerating

_CONVOLVE = {F.conv2d, torch.conv2d, depthwise, pointwise, factored_conv, adaptive_conv}
# What takes any order in memory, and whose results may be in that of what it is given.
_KEEP_ORDER = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div),
    *(operator.iadd, operator.imul, add_, sub_, mul_, truediv_),
    *(torch.cat, torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, F.elu),
    *(F.hardswish, F.hardsigmoid, F.sigmoid, F.batch_norm, F.dropout, F.max_pool2d, F.avg_pool2d, F.pad),
    *(F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, torch.mean, torch.sum, checked_input),
    *(call_regenerating, reorder_gradient, separable_conv, channels_last, *_CONVOLVE, *CONVOLUTIONS.values()),
    *("add", "add_", "mul", "mul_", "sub", "relu", "relu_", "sigmoid", "tanh", "float", "to", "mean", "sum"),
}
# What takes any order, and whose results have the usual one, or none.
_TAKE_ANY = {"size", "dim", "contiguous"}
_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device"})
_MAKE_CONTIGUOUS = {F.linear, F.layer_norm, factored_linear, adaptive_linear, *_TAKE_ANY}
_FLATTEN, _PERMUTE = {torch.flatten, "flatten"}, {torch.permute, "permute"}
_MODULES = (
    *(
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.Dropout,
        nn.Dropout2d,
        nn.Identity,
    ),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample),
)


@graph_pass
def put_channels_last(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Let images have their channels last from the first of several convolutions to where that might not be taken."""
    convolutions = {node for node in graph_module.graph.nodes if _convolves(graph_module, node)}
    reordered = _reordered(graph_module, convolutions)
    if not plan.channels_last or _is_written_elsewhere(graph_module, reordered):
        return False
    first = [
        node
        for node in reordered
        if node in convolutions
        and _image(node) not in reordered
        and _image(node).target is not channels_last
        and _leads_to(node, convolutions, reordered)
    ]
    for node in first:
        with graph_module.graph.inserting_before(node):
            ordered = graph_module.graph.call_function(channels_last, (_image(node),))
        node.replace_input_with(_image(node), ordered)
    return _restore(graph_module) or bool(first)


@graph_pass
def restore_order(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Let a value whose channels may come last be contiguous where `view`, say, or a user's module reads it."""
    return _restore(graph_module)


def _restore(graph_module: fx.GraphModule) -> bool:
    graph, starts = graph_module.graph, _starts(graph_module)
    reordered = _reordered(graph_module, starts)
    if _is_written_elsewhere(graph_module, reordered):
        # A copy for the one who reads it would not be what is written to.
        return _replace_each(starts, lambda node: graph.call_method("contiguous", (node,)))
    modified = False
    for node in list(graph.nodes):
        given = [] if node in reordered or _takes_any(node) else node.all_input_nodes
        for value in given:
            if value in reordered:
                # Right before it is read: until then it may be changed in place.
                with graph.inserting_before(node):
                    node.replace_input_with(value, graph.call_method("contiguous", (value,)))
                modified = True
    return modified


@graph_pass
def order_gradients(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Let the gradient of what a batch norm returns have the order of its input."""
    reordered = _reordered(graph_module, _starts(graph_module))
    norms = [node for node in reordered if _is_batch_norm(graph_module, node)]
    return _replace_each(norms, lambda node: graph_module.graph.call_function(reorder_gradient, (node,)))


def _replace_each(values: Iterable[fx.Node], call: Callable[[fx.Node], fx.Node]) -> bool:
    """Let all that read one of the values read a call on it instead; whether there is one for which they don't yet."""
    modified = False
    for value in values:
        with value.graph.inserting_after(value):
            result = call(value)
        others = [user for user in value.users if user is not result]
        if all(user.target == result.target for user in others):
            value.graph.erase_node(result)
            continue
        for user in others:
            user.replace_input_with(value, result)
        modified = True
    return modified


def _starts(graph_module: fx.GraphModule) -> dict[fx.Node, None]:
    """What has its channels last, whatever it is given, in the order of the graph."""
    return {node: None for node in graph_module.graph.nodes if node.target in (separable_conv, channels_last)}


def _reordered(graph_module: fx.GraphModule, starts: Collection[fx.Node]) -> dict[fx.Node, None]:
    """What may have its channels last if some values have, in the order of the graph."""
    found: dict[fx.Node, None] = {}
    for node in graph_module.graph.nodes:
        if node in starts or (_keeps_order(graph_module, node) and not found.keys().isdisjoint(node.all_input_nodes)):
            found[node] = None
    return found


def _convolves(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(graph_module.get_submodule(str(node.target))) is nn.Conv2d
    return node.op == "call_function" and node.target in _CONVOLVE


def _image(convolution: fx.Node) -> fx.Node:
    image = convolution.args[0] if convolution.args else convolution.kwargs["input"]
    assert isinstance(image, fx.Node)
    return image


def _leads_to(value: fx.Node, others: Container[fx.Node], reordered: Container[fx.Node]) -> bool:
    """Whether one of some other nodes reads what becomes of a value in the same order."""
    pending, seen = [value], {value}
    while pending:
        new = [user for user in pending.pop().users if user in reordered and user not in seen]
        if any(user in others for user in new):
            return True
        pending += new
        seen.update(new)
    return False


def _is_written_elsewhere(graph_module: fx.GraphModule, reordered: Collection[fx.Node]) -> bool:
    """Whether a copy of one of these values, for what does not take it in any order, could be told from the value.

    It is changed in place there, or a view of it, or its own memory is after a view was taken.
    """
    others = {
        node
        for node in graph_module.graph.nodes
        if node not in reordered and any(each in reordered for each in node.all_input_nodes)
    }
    return any(
        changed_in_place(node) in reordered or is_changed_in_place(node) or _runs_code_of_others(graph_module, node)
        for node in others
    ) or _is_written_later(graph_module, others)


def _is_written_later(graph_module: fx.GraphModule, readers: Container[fx.Node]) -> bool:
    """Whether what one of some nodes reads is changed in place after it, though its result may be a view of that."""
    views: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        changed = changed_in_place(node)
        if changed is not None and views and not views.isdisjoint(memory_sources(changed)):
            return True
        if node in readers and node.users:
            views.update(source for value in shared_inputs(node) for source in memory_sources(value))
    return False


def _runs_code_of_others(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls a module that is no layer of torch, whose code may change what it is given."""
    if node.op != "call_module":
        return False
    modules = graph_module.get_submodule(str(node.target)).modules()
    return any(not type(each).__module__.startswith("torch.nn.") for each in modules)


def _takes_any(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in _PERMUTE:
        # Of what has its channels last already, that is contiguous; so is what these make of it, but no sum or product.
        is_last = tuple(tree_leaves([node.args[1:], node.kwargs])) == (0, 2, 3, 1)
        return is_last and all(user.target in _MAKE_CONTIGUOUS for user in node.users)
    if node.target in _FLATTEN:
        # Others may be a view, whose order is none of the usual ones.
        given = {"start_dim": 0, "end_dim": -1, **dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))}
        given |= node.kwargs
        return given["start_dim"] in (0, 1) and given["end_dim"] in (-1, 3)
    if node.target is getattr:
        return node.args[1] in _ATTRIBUTES
    return node.target in _TAKE_ANY


def _keeps_order(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(graph_module.get_submodule(str(node.target))) in _MODULES
    return node.op in ("call_function", "call_method") and node.target in _KEEP_ORDER


def _is_batch_norm(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return node.target is F.batch_norm
    return isinstance(graph_module.get_submodule(str(node.target)), nn.modules.batchnorm._BatchNorm)
