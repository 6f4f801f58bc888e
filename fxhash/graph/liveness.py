"""What a graph's values depend on, and for how long their memory is in use."""

from __future__ import annotations

import operator

import networkx as nx
import torch
from torch import fx
from torch.nn import functional as F

from fxhash.graph.recorded import is_recorded

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
}


def dataflow(graph: fx.Graph) -> nx.DiGraph:
    """The graph's nodes as a directed acyclic graph: an edge from each value to each node that reads it.

    An edge has the attribute `may_alias`: whether the reader's result may share memory with the value.
    """
    flow = nx.DiGraph()
    for position, node in enumerate(graph.nodes):
        flow.add_node(node, position=position)
        for value in node.all_input_nodes:
            flow.add_edge(value, node, may_alias=not _returns_new_memory(node))
    return flow


def is_changed_in_place(value: fx.Node) -> bool:
    """Whether a function or method in the graph changes `value`, or a view of it, in place."""
    return any(
        _changes_in_place(user) or (not _returns_new_memory(user) and is_changed_in_place(user))
        for user in value.users
        if user.op in ("call_function", "call_method")
    )


def _returns_new_memory(node: fx.Node) -> bool:
    return node.target in _RETURN_NEW_MEMORY or is_recorded(node.target)


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
