"""What a graph's values depend on, and for how long their memory is in use."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import networkx as nx
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from fxhash.graph.in_place import IN_PLACE_OPERATORS
from fxhash.graph.sharing import shared_inputs

# Of functions and methods, whose arguments are told by their names.
_CALLS = ("call_function", "call_method")


class Dataflow:
    """A graph's nodes as a directed acyclic graph, with an edge from each value to each node that reads it.

    Attributes:
        position: where each node stands in the graph.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.position = {node: index for index, node in enumerate(graph.nodes)}
        self._aliases = nx.DiGraph()
        self._aliases.add_nodes_from(graph.nodes)
        self._aliases.add_edges_from((value, node) for node in graph.nodes for value in shared_inputs(node))

    def memory_readers(self, value: fx.Node, readers: Collection[fx.Node]) -> list[fx.Node]:
        """The nodes that read the memory of a value, itself or what may be a view of it, in the order of the graph.

        Args:
            value: the value.
            readers: those of its readers that count.
        """
        views = {reader for reader in readers if self._aliases.has_edge(value, reader)}
        for view in list(views):
            views |= nx.descendants(self._aliases, view)
        found = {*readers, *views, *(user for view in views for user in view.users)}
        return sorted(found, key=self.position.__getitem__)


def memory_sources(value: fx.Node) -> Iterator[fx.Node]:
    """A value, and those whose memory it may be a view of."""
    pending, seen = [value], {value}
    while pending:
        each = pending.pop()
        yield each
        sources = [source for source in shared_inputs(each) if source not in seen]
        pending += sources
        seen.update(sources)


def is_changed_in_place(value: fx.Node) -> bool:
    """Whether a function, method or layer in the graph changes `value`, or a view of it, in place.

    Modules that get their parameters in a sequence, before what they are called with, return none of these.
    """
    return any(
        value in _changed_arguments(user)
        or (not _is_parameter_of(value, user) and value in shared_inputs(user) and is_changed_in_place(user))
        for user in value.users
    )


def _is_parameter_of(value: fx.Node, user: fx.Node) -> bool:
    first = user.args[0] if user.args else None
    return user.op == "call_module" and isinstance(first, (list, tuple)) and value in first


def changed_in_place(node: fx.Node) -> fx.Node | None:
    """The value that a call changes in place, the first of several; None if it changes none."""
    return next(iter(_changed_arguments(node)), None)


def _is_in_place_layer(node: fx.Node) -> bool:
    """Whether a node calls a layer of torch such as `nn.SELU(inplace=True)`, or several one of which is such.

    No while its graph is recorded, as the layers are unknown then.
    """
    graph_module = node.graph.owning_module
    if node.op != "call_module" or graph_module is None:
        return False
    layer = graph_module.get_submodule(str(node.target))
    is_of_torch = type(layer).__module__.startswith("torch.nn.")
    return is_of_torch and any(getattr(each, "inplace", None) is True for each in layer.modules())


def _changed_arguments(node: fx.Node) -> list[fx.Node]:
    if _is_in_place_layer(node):
        return node.all_input_nodes[:1]
    if node.op not in _CALLS:
        return []
    if isinstance(node.target, torch._ops.OpOverload):
        written = {i for i, each in enumerate(node.target._schema.arguments) if each.alias_info and each.is_write}
        names = {node.target._schema.arguments[i].name for i in written}
        changed = [each for i, each in enumerate(node.args) if i in written]
        changed += [each for name, each in node.kwargs.items() if name in names]
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        is_in_place = (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE_OPERATORS
        first = node.args[0] if node.args else node.kwargs.get("input")
        changed = [node.kwargs.get("out"), first if is_in_place or node.kwargs.get("inplace") is True else None]
    return [leaf for each in changed for leaf in tree_leaves(each) if isinstance(leaf, fx.Node)]
