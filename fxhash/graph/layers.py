"""Calls that are plain layers: a linear layer, a convolution or an embedding, and nothing more than that."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx
from torch.nn import functional as F

from fxhash.graph.arguments import all_arguments

CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LAYERS: frozenset[Any] = frozenset({F.linear, F.embedding, *CONVOLUTIONS.values()})


def is_layer_of(weight: fx.Node, reader: fx.Node, functions: Collection[Any] = LAYERS) -> bool:
    """Whether a call is a layer, and a value its weight and nothing else of it.

    Args:
        weight: the value.
        reader: a node that reads it.
        functions: which functions count as layers.
    """
    if reader.op != "call_function" or reader.target not in functions:
        return False
    arguments = all_arguments(reader)
    others = [value for name, value in arguments.items() if name != "weight"]
    return arguments["weight"] is weight and weight not in others


def is_plain_layer_of(weight: fx.Node, reader: fx.Node, functions: Collection[Any] = LAYERS) -> bool:
    """The same for a plain layer: a convolution without groups, an embedding that doesn't renormalise its rows."""
    if not is_layer_of(weight, reader, functions):
        return False
    arguments = all_arguments(reader)
    return bool(arguments.get("groups", 1) == 1 and arguments.get("max_norm") is None)


def convolution_weights(graph: fx.Graph) -> set[str]:
    """Names of the parameters that are weights of convolutions without groups, and nothing else."""
    found: dict[str, bool] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            only = all(is_plain_layer_of(node, user, CONVOLUTIONS.values()) for user in node.users)
            found[str(node.target)] = found.get(str(node.target), True) and only
    return {name for name, only in found.items() if only}
