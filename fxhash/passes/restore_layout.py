"""Bring values back to the usual order in memory before anything that might not take another one."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxhash.graph.layers import CONVOLUTIONS
from fxhash.lowering.functional import adaptive_conv, factored_conv
from fxhash.lowering.input_check import checked_input
from fxhash.lowering.plan import LoweringPlan
from fxhash.lowering.separable import reorder_gradient, separable_conv
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import Factors
from fxhash.smh.regeneration import call_regenerating

# What takes any order in memory, and whose results are in that of what it is given.
_KEEP_ORDER = {
    *(operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv, torch.add, torch.mul),
    *(torch.cat, torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, F.elu),
    *(F.hardswish, F.hardsigmoid, F.sigmoid, F.batch_norm, F.dropout, F.max_pool2d, F.avg_pool2d, F.pad),
    *(F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, checked_input, call_regenerating),
    *(separable_conv, reorder_gradient, factored_conv, adaptive_conv, *CONVOLUTIONS.values()),
    *("add", "add_", "mul", "mul_", "sub", "relu", "relu_", "sigmoid", "tanh", "float", "to"),
}
# What takes any order, and whose results have the usual one, or none.
_TAKE_ANY = {torch.flatten, torch.mean, torch.sum, getattr, "flatten", "mean", "sum", "size", "dim", "contiguous"}
_MODULES = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.Dropout, nn.Dropout2d, nn.Identity),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample),
)


@graph_pass
def restore_layout(graph_module: fx.GraphModule, plan: LoweringPlan, factors: Factors) -> bool:
    """Let a value whose channels may come last be contiguous where `view`, say, or a user's module reads it."""
    graph = graph_module.graph
    reordered: dict[fx.Node, fx.Node | None] = {}
    modified = False
    for node in list(graph.nodes):
        given = [each for each in node.all_input_nodes if each in reordered]
        if node.target is separable_conv or (given and _is_any_of(graph_module, node, _KEEP_ORDER)):
            reordered[node] = None
            if _is_batch_norm(graph_module, node) and not any(user.target is reorder_gradient for user in node.users):
                with graph.inserting_after(node):
                    same = graph.call_function(reorder_gradient, (node,))
                node.replace_all_uses_with(same, lambda user: user.target is not reorder_gradient)
                reordered[same] = None
                modified = True
        elif not _is_any_of(graph_module, node, _TAKE_ANY):
            for value in given:
                contiguous = reordered[value]
                if contiguous is None:
                    with graph.inserting_after(value):
                        contiguous = reordered[value] = graph.call_method("contiguous", (value,))
                node.replace_input_with(value, contiguous)
                modified = True
    return modified


def _is_batch_norm(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return node.target is F.batch_norm
    return isinstance(graph_module.get_submodule(str(node.target)), nn.modules.batchnorm._BatchNorm)


def _is_any_of(graph_module: fx.GraphModule, node: fx.Node, targets: set[object]) -> bool:
    if node.op == "call_module":
        return targets is _KEEP_ORDER and type(graph_module.get_submodule(str(node.target))) in _MODULES
    return node.op in ("call_function", "call_method") and node.target in targets
