"""What a graph's values depend on, and for how long their memory is in use."""

from __future__ import annotations

import operator

import networkx as nx
import torch
from torch import fx
from torch.nn import functional as F

from fxhash.factored import (
    CONVOLUTIONS,
    conv_by_size,
    conv_in_turn,
    depthwise,
    embedding_in_turn,
    linear_by_size,
    linear_in_turn,
)
from fxhash.product import separable

CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

# These return memory of their own. Whatever else uses a value might return a view of it.
_RETURN_NEW_MEMORY = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.matmul,
    torch.matmul,
    torch.mm,
    torch.bmm,
    F.linear,
    F.bilinear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.embedding,
    F.embedding_bag,
    linear_in_turn,
    conv_in_turn,
    embedding_in_turn,
    linear_by_size,
    conv_by_size,
    depthwise,
    separable,
}


def dataflow(graph: fx.Graph) -> nx.DiGraph:
    """The graph's nodes as a directed acyclic graph: an edge from each value to each node that reads it.

    An edge has the attribute `may_alias`: whether the reader's result may share memory with the value.
    """
    flow = nx.DiGraph()
    for position, node in enumerate(graph.nodes):
        flow.add_node(node, position=position)
        for value in node.all_input_nodes:
            flow.add_edge(value, node, may_alias=node.target not in _RETURN_NEW_MEMORY)
    return flow


def is_changed_in_place(value: fx.Node) -> bool:
    """Whether a function or method in the graph changes `value`, or a view of it, in place."""
    return any(
        _changes_in_place(user) or (user.target not in _RETURN_NEW_MEMORY and is_changed_in_place(user))
        for user in value.users
        if user.op in ("call_function", "call_method")
    )


def _changes_in_place(node: fx.Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def live_ranges(graph: fx.Graph, values: set[fx.Node]) -> dict[fx.Node, tuple[int, int]]:
    """First and last position in the graph at which the memory of each of `values` is in use."""
    flow = dataflow(graph)
    position = nx.get_node_attributes(flow, "position")
    aliasing = nx.DiGraph()
    aliasing.add_nodes_from(flow)
    aliasing.add_edges_from(edge for edge in flow.edges if flow.edges[edge]["may_alias"])
    ranges = {}
    for value in values:
        aliases = {value, *nx.descendants(aliasing, value)}
        last = max(position[reader] for alias in aliases for reader in (alias, *flow.successors(alias)))
        ranges[value] = (position[value], last)
    return ranges


def convolution_weights(graph: fx.Graph) -> set[str]:
    """Names of the parameters that are weights of convolutions without groups, and nothing else."""
    found: dict[str, bool] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            found[name] = found.get(name, True) and all(_is_convolution_with(node, user) for user in node.users)
    return {name for name, only in found.items() if only}


def _is_convolution_with(weight: fx.Node, user: fx.Node) -> bool:
    """Whether a node is a convolution without groups, and a value its weight and nothing else of it."""
    if user.target not in CONVOLUTIONS.values():
        return False
    arguments = dict(zip(CONVOLUTION_ARGUMENTS, user.args, strict=False)) | dict(user.kwargs)
    others = [value for name, value in arguments.items() if name != "weight"]
    return arguments["weight"] is weight and weight not in others and bool(arguments.get("groups", 1) == 1)
