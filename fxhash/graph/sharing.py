"""Which values of a graph may share memory: what a call may return a view of, or return itself.

Torch's schemas say it of its own functions; whatever else is called may return any of its inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C import FunctionSchema
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from fxhash.graph.in_place import IN_PLACE_OPERATORS
from fxhash.graph.recorded import is_calling_by_name, is_computing

_OPERATORS: dict[Callable[..., Any], str] = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.pow: "pow",
    operator.neg: "neg",
    operator.matmul: "matmul",
}
# These return an input, or a view of it, for some arguments, though their schemas don't say so: found with the samples
# of torch.testing._internal.common_methods_invocations.op_db, or in their code.
_MAY_RETURN_INPUT = frozenset(
    [
        *("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
        *("atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors", "align_tensors", "meshgrid", "cartesian_prod"),
        *("combinations", "chain_matmul", "histogramdd", "conj_physical", "sum_to_size", "type_as", "to_dense"),
        *("unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"),
        *("channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "einsum"),
    ]
)

# Layers of torch that compute what they return, unless they do so in place.
_COMPUTING_LAYERS: frozenset[type[nn.Module]] = frozenset(
    [
        *(nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.EmbeddingBag, nn.PReLU),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.LayerNorm, nn.GroupNorm),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
        *(nn.Softmax, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    ]
)


def shared_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that its result may be, or be a view of."""
    if node.target in IN_PLACE_OPERATORS.values():
        return [each for each in node.args[:1] if isinstance(each, fx.Node)]
    if is_computing(node.target) or (node.op == "call_module" and _computes(node)):
        return []
    schemas = _schemas(node)
    # With several operands, a sum over products of them is computed.
    is_sum = node.target is torch.einsum and len(node.all_input_nodes) > 1
    if is_sum or (schemas and not _is_in_place(node) and not any(map(_shares, schemas))):
        return []
    if not schemas or (node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload)):
        # Arguments of functions that are written in Python may have another order than those of their schema.
        return node.all_input_nodes
    given = [argument for schema in schemas for argument in _shared_arguments(node, schema)]
    return list(dict.fromkeys(leaf for each in given for leaf in tree_leaves(each) if isinstance(leaf, fx.Node)))


def _computes(node: fx.Node) -> bool:
    """Whether a node calls a layer of torch that computes what it returns; no while the graph is recorded."""
    graph_module = node.graph.owning_module
    if graph_module is None:
        return False
    layer = graph_module.get_submodule(str(node.target))
    return (
        type(layer) in _COMPUTING_LAYERS
        and getattr(layer, "inplace", False) is False
        and not (layer._forward_hooks or layer._forward_pre_hooks)
    )


def _is_in_place(node: fx.Node) -> bool:
    return "out" in node.kwargs or node.kwargs.get("inplace", False) is not False


def _schemas(node: fx.Node) -> tuple[FunctionSchema, ...]:
    """The schemas of a function or method of torch that can be relied on; none for any other."""
    target, name = node.target, ""
    if isinstance(target, torch._ops.OpOverload):
        is_reliable = target._schema.name.partition("::")[2] not in _MAY_RETURN_INPUT
        return (target._schema,) if is_reliable else ()
    if isinstance(target, str):
        name = target if node.op == "call_method" and hasattr(Tensor, target) else ""
    elif is_calling_by_name(target):
        name = str(node.args[0]).rpartition(".")[2]
    elif target in _OPERATORS:
        name = _OPERATORS[target]
    elif any(getattr(module, getattr(target, "__name__", ""), None) is target for module in (torch, F)):
        name = target.__name__
    return _schemas_named(name)


@cache
def _schemas_named(name: str) -> tuple[FunctionSchema, ...]:
    packet = getattr(torch.ops.aten, name, None) if name and name not in _MAY_RETURN_INPUT else None
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return ()
    schemas = (getattr(packet, overload)._schema for overload in packet.overloads())
    return tuple(schema for schema in schemas if not any(argument.is_out for argument in schema.arguments))


def _shares(schema: FunctionSchema) -> bool:
    return any(result.alias_info is not None for result in schema.returns)


def _shared_arguments(node: fx.Node, schema: FunctionSchema) -> Iterator[Any]:
    """What a method, or an overload, is given for the arguments that its result shares memory with."""
    if not _shares(schema):
        return
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None:
            if index < len(node.args):
                yield node.args[index]
            yield node.kwargs.get(argument.name)
