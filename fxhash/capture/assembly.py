"""A graph module of a captured graph, and of what the graph refers to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxhash.errors import TransformError
from fxhash.graph.names import CAPTURED

_SPELLABLE_DEFAULTS = (type(None), bool, int, float, str, torch.dtype)


def detached(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph that doesn't refer to the tracer that recorded it: unpickling would trace with it again.

    Raises:
        TransformError: for a default value of an argument that generated code can't spell.
        SyntaxError: for another constant in the graph that it can't.
    """
    plain = fx.Graph()
    plain.output(plain.graph_copy(graph, val_map={}))
    for node in plain.nodes:
        if isinstance(node.type, str):
            # An annotation under `from __future__ import annotations`; with it, older torch can't pickle the graph.
            node.type = None
        if node.op == "placeholder" and node.args and not _is_spellable(node.args[0]):
            kind = type(node.args[0]).__name__.removeprefix("immutable_")
            raise TransformError(
                f"argument {node.target!r} of forward has a {kind} as its default, which a graph can't hold: let it be "
                "None, and choose inside forward"
            )
    compile(plain.python_code("self").src, "<graph>", "exec")
    return plain


def _is_spellable(default: Any) -> bool:
    if isinstance(default, tuple):
        return all(map(_is_spellable, default))
    return isinstance(default, _SPELLABLE_DEFAULTS) or (isinstance(default, (dict, list)) and not default)


def assemble(
    model: nn.Module, graph: fx.Graph, attributes: Mapping[str, Tensor | nn.Module], captured: str
) -> fx.GraphModule:
    """The graph module of a graph, with the class name and the mode of the model that was captured.

    Args:
        model: the model.
        graph: its graph, which doesn't refer to a tracer.
        attributes: what the graph's `get_attr` and `call_module` nodes refer to, by target. The graph module gets
            those of them that the graph refers to, and no copies.
        captured: how the model became a graph, for the summary.
    """
    targets = {node.target for node in graph.nodes if node.op in ("get_attr", "call_module")}
    named: dict[str, Any] = {target: attributes[target] for target in targets}
    graph_module = fx.GraphModule(named, graph, class_name=type(model).__name__)
    graph_module.training = model.training
    graph_module.meta[CAPTURED] = captured
    return graph_module
