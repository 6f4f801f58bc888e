"""Runs of nodes that an ONNX graph has several times, each written once, as a function of the model.

A runtime puts them in the place of their calls when it loads the file, so that they cost bytes of the file alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fxhash.storage.onnx_compact import serialized_attributes
from fxhash.storage.onnx_names import short_names

# The domain of the functions, and how many nodes one has at most.
_DOMAIN = "f"
_LONGEST = 48
# Beyond so many nodes the search takes longer than the export, and factors are larger than any graph.
_MOST_NODES = 4000
_MOST_FUNCTIONS = 24
# Bytes of a function and of a call beside those of its nodes and of the names it is given: estimated.
_FUNCTION_BYTES, _CALL_BYTES, _NAME_BYTES = 30, 12, 4


def outline(model: Any) -> None:
    """Write runs of nodes that a model repeats as functions, in place, where that saves bytes.

    Args:
        model: an `onnx.ModelProto` without functions, branches and loops.
    """
    import onnx

    nodes = _in_order_of_use(model.graph)
    # No function of ONNX Runtime takes integers of 4 bits.
    apart = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT4}
    sequences = [_Sequence(nodes, [value.name for value in model.graph.output], apart=apart)]
    functions: list[Any] = []
    (opset,) = [entry for entry in model.opset_import if not entry.domain] or [None]
    if opset is None or len(model.opset_import) > 1 or len(nodes) > _MOST_NODES:
        return
    names = short_names(set())
    own = onnx.helper.make_opsetid(_DOMAIN, 1)
    while len(functions) < _MOST_FUNCTIONS and (found := _best(sequences)) is not None:
        name = next(names)
        body = _body(sequences, found)
        for index, sequence in enumerate(sequences):
            places = [place for place in found.places if place.sequence == index]
            sequence.replace(places, found.length, name)
        sequences.append(body)
        functions.append((name, body))
    for name, body in functions:
        imports = [opset, own] if any(node.domain == _DOMAIN for node in body.nodes) else [opset]
        model.functions.append(onnx.helper.make_function(_DOMAIN, name, body.inputs, body.outputs, body.nodes, imports))
    if functions:
        model.opset_import.append(own)
    del model.graph.node[:]
    model.graph.node.extend(sequences[0].nodes)


def _in_order_of_use(graph: Any) -> list[Any]:
    """The nodes, each right before the first that reads it: what belongs to a layer is together then."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    done: dict[int, None] = {}
    stack = [makers[value.name] for value in reversed(graph.output) if value.name in makers]
    while stack:
        index = stack[-1]
        waiting = [makers[name] for name in graph.node[index].input if name in makers and makers[name] not in done]
        if waiting:
            stack.append(waiting[0])
        else:
            done[stack.pop()] = None
    return [graph.node[index] for index in done]


@dataclass(frozen=True)
class _Place:
    """Where a run of nodes begins, and what it reads and gives there, in the order of its form."""

    sequence: int
    start: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    length: int
    places: list[_Place]


class _Sequence:
    """The nodes of the graph or of a function, in order.

    Args:
        nodes: each an `onnx.NodeProto`.
        outputs: names that are read from outside.
        inputs: names that are given from outside, for a function.
        apart: names that no function may be given.
    """

    def __init__(
        self, nodes: list[Any], outputs: list[str], inputs: Iterable[str] = (), apart: Iterable[str] = ()
    ) -> None:
        self.nodes, self.outputs, self.inputs, self._apart = nodes, outputs, list(inputs), frozenset(apart)
        self._update()

    def _update(self) -> None:
        self.kinds: list[object] = [
            node.output[0] if self._apart.intersection(node.input) else _kind(node) for node in self.nodes
        ]
        self.last_read: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            self.last_read |= dict.fromkeys(node.input, index)
        self.last_read |= dict.fromkeys(self.outputs, len(self.nodes))

    def form(self, start: int, length: int, sequence: int) -> tuple[object, _Place]:
        """How a run is wired, whatever its values are called, and the names of what it reads and gives."""
        made: dict[str, int] = {}
        read: dict[str, int] = {}
        wiring: list[object] = []
        for node in self.nodes[start : start + length]:
            for name in node.input:
                if name in made:
                    wiring.append(made[name])
                else:
                    wiring.append(-1 - read.setdefault(name, len(read)) if name else "")
            for name in node.output:
                made[name] = len(made)
        given = [name for name in made if self.last_read.get(name, -1) >= start + length]
        form = (tuple(self.kinds[start : start + length]), tuple(wiring), tuple(made[name] for name in given))
        return form, _Place(sequence, start, tuple(read), tuple(given))

    def replace(self, places: list[_Place], length: int, name: str) -> None:
        """Put calls of a function in the place of runs."""
        import onnx

        for place in sorted(places, key=lambda place: -place.start):
            call = onnx.helper.make_node(name, place.inputs, place.outputs, domain=_DOMAIN)
            self.nodes[place.start : place.start + length] = [call]
        self._update()


def _kind(node: Any) -> tuple[object, ...]:
    return node.domain, node.op_type, len(node.input), len(node.output), *serialized_attributes(node)


def _best(sequences: list[_Sequence]) -> _Run | None:
    """The run of nodes that saves most bytes as a function; None if none saves any."""
    numbers: dict[object, int] = {}
    kinds = [[numbers.setdefault(kind, len(numbers)) for kind in sequence.kinds] for sequence in sequences]
    best, most_saved = None, 0
    starts = [(index, start) for index, each in enumerate(kinds) for start in range(len(each))]
    for length in range(1, _LONGEST + 1):
        starts = [(index, start) for index, start in starts if start + length <= len(kinds[index])]
        repeated = Counter(tuple(kinds[index][start : start + length]) for index, start in starts)
        # A longer run can only be repeated where a shorter one is.
        starts = [at for at in starts if repeated[tuple(kinds[at[0]][at[1] : at[1] + length])] > 1]
        if not starts:
            break
        for run in _runs(sequences, starts, length):
            saved = _saved(sequences, run)
            if saved > most_saved:
                best, most_saved = run, saved
    return best


def _runs(sequences: list[_Sequence], starts: list[tuple[int, int]], length: int) -> Iterator[_Run]:
    """Runs of a length that are wired alike in several places that don't overlap."""
    places: dict[object, list[_Place]] = {}
    for index, start in starts:
        form, place = sequences[index].form(start, length, index)
        same = places.setdefault(form, [])
        if not same or same[-1].sequence != index or same[-1].start + length <= start:
            same.append(place)
    yield from (_Run(length, same) for same in places.values() if len(same) > 1 and same[0].outputs)


def _saved(sequences: list[_Sequence], run: _Run) -> int:
    first = run.places[0]
    nodes = sequences[first.sequence].nodes[first.start : first.start + run.length]
    size = sum(node.ByteSize() + 3 for node in nodes)
    # Names are short in the end.
    size -= sum(max(len(name) - 2, 0) for node in nodes for name in (*node.input, *node.output))
    names = _NAME_BYTES * (len(first.inputs) + len(first.outputs))
    return len(run.places) * (size - _CALL_BYTES - names) - size - names - _FUNCTION_BYTES


def _body(sequences: list[_Sequence], run: _Run) -> _Sequence:
    """The nodes of a run as those of a function, with short names."""
    import onnx

    first = run.places[0]
    fresh = short_names(set())
    names: dict[str, str] = {"": ""}
    nodes = []
    for original in sequences[first.sequence].nodes[first.start : first.start + run.length]:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                if name not in names:
                    names[name] = next(fresh)
                values[index] = names[name]
        nodes.append(node)
    return _Sequence(nodes, [names[name] for name in first.outputs], [names[name] for name in first.inputs])
