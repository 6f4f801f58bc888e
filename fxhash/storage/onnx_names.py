"""Short names for the values of an ONNX graph, which would take more bytes than the factors of a small model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any


def shorten_names(graph: Any) -> None:
    """Give all values but inputs and outputs short names, those that are read most the shortest, in place.

    Args:
        graph: an `onnx.GraphProto` without branches and loops.
    """
    kept = {value.name for value in (*graph.input, *graph.output)}
    counts = Counter(name for node in graph.node for name in (*node.input, *node.output))
    counts.update(tensor.name for tensor in graph.initializer)
    fresh = short_names(kept)
    names = {name: next(fresh) for name, _ in counts.most_common() if name and name not in kept}
    for node in graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = names.get(name, name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def short_names(taken: set[str]) -> Iterator[str]:
    """Names that are not taken, the shortest first."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names = [""]
    while True:
        names = [name + letter for name in names for letter in letters]
        yield from (name for name in names if name not in taken)
