"""What an ONNX graph can do without, taken out: constants computed in steps, copies, defaults, nodes that are there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

# Of numbers that nodes compute from constants alone, such as sizes: what has more entries is left to the runtime.
_MOST_ENTRIES = 64
# What may be computed here: all of them are exact.
_EXACT = {
    *("Cast", "CastLike", "Concat", "ConstantOfShape", "Expand", "Gather", "Identity", "Range", "Reshape", "Slice"),
    *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
}
# Those whose output may be larger than what they are given.
_GROW = {"ConstantOfShape", "Expand", "Range", "Tile"}
_EXACT_FOR_INTEGERS = {"Add", "Div", "Max", "Min", "Mod", "Mul", "Neg", "Sub"}
# With an output of the input's shape and type they do nothing, if what else they are given doesn't count backwards.
_COPIES_IF_ALIKE = {"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Tile", "Unsqueeze"}
_RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
# Of convolutions, what the specification has no constant for.
_OF_ONE, _OF_ZERO = ("strides", "dilations"), ("pads",)


def compact(model: Any) -> None:
    """Make the graph of a model small, in place; it computes the same numbers.

    Graphs with branches and loops, whose bodies read values of the graph around them, lose their names alone.

    Args:
        model: an `onnx.ModelProto` without functions.
    """
    graph = model.graph
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if not has_bodies(graph):
        _Compaction(graph, versions).run()
    del graph.value_info[:]
    for node in graph.node:
        node.ClearField("name")
        node.ClearField("doc_string")


def has_bodies(graph: Any) -> bool:
    """Whether a graph has branches or loops, whose bodies read its values."""
    return any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute)


class _Compaction:
    """One graph, and what is known of its values.

    Args:
        graph: an `onnx.GraphProto`.
        versions: of the operator set of each domain.
    """

    def __init__(self, graph: Any, versions: dict[str, int]) -> None:
        self.graph = graph
        self.versions = versions
        self.types = {value.name: _type(value) for value in (*graph.value_info, *graph.input, *graph.output)}
        self.types |= {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.constants: dict[str, np.ndarray] = {}
        self.replaced: dict[str, str] = {}

    def run(self) -> None:
        nodes = self._shared(list(self._needed(self.graph.node)))
        nodes = _live(nodes, self.outputs)
        nodes = self._with_initializers(nodes)
        for node in nodes:
            self._drop_defaults(node)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input} | self.outputs
        unread = [tensor for tensor in self.graph.initializer if tensor.name not in read]
        for tensor in unread:
            self.graph.initializer.remove(tensor)

    def _needed(self, nodes: Any) -> Iterator[Any]:
        """The nodes that are neither computed here nor copy their input."""
        made: dict[str, Any] = {}
        for node in nodes:
            self._read_replaced(node)
            if self._compute(node):
                continue
            _merge_reshapes(node, made, self.constants)
            if self._is_copy(node):
                self.replaced[node.output[0]] = node.input[0]
                continue
            made |= dict.fromkeys(node.output, node)
            yield node

    def _shared(self, nodes: list[Any]) -> list[Any]:
        """The nodes, of those that compute the same the first alone."""
        first: dict[tuple[object, ...], Any] = {}
        kept = []
        for node in nodes:
            self._read_replaced(node)
            inputs = tuple(self._key(name) for name in node.input)
            key = (node.domain, node.op_type, inputs, len(node.output), *serialized_attributes(node))
            same = first.setdefault(key, node)
            if same is node or node.op_type in _RANDOM or self.outputs & set(node.output):
                kept.append(node)
            else:
                self.replaced |= dict(zip(node.output, same.output, strict=True))
        return kept

    def _key(self, name: str) -> object:
        value = self.constants.get(name)
        return name if value is None else (str(value.dtype), value.shape, value.tobytes())

    def _read_replaced(self, node: Any) -> None:
        for index, name in enumerate(node.input):
            node.input[index] = self.replaced.get(name, name)

    def _compute(self, node: Any) -> bool:
        """Compute a node of constants alone, if it is small; whether it was."""
        from onnx.reference import ReferenceEvaluator

        if node.domain or len(node.output) != 1 or node.output[0] in self.outputs:
            return False
        if node.op_type == "Constant":
            value = _constant(node)
        elif any(name and name not in self.constants for name in node.input) or not node.input:
            return False
        elif node.op_type in _EXACT or (
            node.op_type in _EXACT_FOR_INTEGERS and self.constants[node.input[0]].dtype.kind == "i"
        ):
            if node.op_type in _GROW and self._size(node.output[0]) > _MOST_ENTRIES:
                return False
            given = {name: self.constants[name] for name in node.input if name}
            try:
                (value,) = ReferenceEvaluator(node).run(None, given)
            except Exception:  # Whatever the reference can't do is left to the runtime.
                return False
        else:
            return False
        if not isinstance(value, np.ndarray) or value.size > _MOST_ENTRIES or value.dtype.kind not in "biuf":
            return False
        self.constants[node.output[0]] = value
        return True

    def _size(self, name: str) -> int:
        _, shape = self.types.get(name, (0, None))
        return _MOST_ENTRIES + 1 if shape is None else int(np.prod(shape, dtype=np.int64))

    def _is_copy(self, node: Any) -> bool:
        if node.domain or not node.input or self.outputs & set(node.output) or len(node.output) != 1:
            return False
        given, result = self.types.get(node.input[0]), self.types.get(node.output[0])
        if node.op_type == "Concat":
            return len(node.input) == 1
        if given is None or given != result or given[1] is None:
            return node.op_type == "Identity"
        if node.op_type == "Slice":
            return len(node.input) < 5 or bool((self.constants.get(node.input[4], np.array([-1])) > 0).all())
        if node.op_type == "Pad":
            pads = self.constants.get(node.input[1])
            return pads is not None and not pads.any()
        if node.op_type == "Transpose":
            (perm,) = [list(each.ints) for each in node.attribute] or [[]]
            return bool(perm) and perm == sorted(perm)
        return node.op_type in _COPIES_IF_ALIKE

    def _with_initializers(self, nodes: list[Any]) -> list[Any]:
        """Let nodes read constants that are stored, each once."""
        import onnx

        stored: dict[object, str] = {}
        for node in nodes:
            for index, name in enumerate(node.input):
                if name in self.constants:
                    key = self._key(name)
                    if key not in stored:
                        stored[key] = name
                        self.graph.initializer.append(onnx.numpy_helper.from_array(self.constants[name], name))
                    node.input[index] = stored[key]
        return nodes

    def _drop_defaults(self, node: Any) -> None:
        """Remove attributes that say what holds without them."""
        import onnx

        try:
            schema = onnx.defs.get_schema(node.op_type, self.versions.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            return
        defaults = {name: each.default_value for name, each in schema.attributes.items() if not each.required}
        for attribute in list(node.attribute):
            attribute.ClearField("doc_string")
            default = defaults.get(attribute.name)
            same = default is not None and default.type and _value(default) == _value(attribute)
            is_idle = attribute.name == "allowzero" and self.constants.get(node.input[1], np.zeros(1)).all()
            if same or is_idle or (node.op_type == "Conv" and _is_default_of_conv(attribute)):
                node.attribute.remove(attribute)


def _is_default_of_conv(attribute: Any) -> bool:
    values = set(attribute.ints)
    return (
        attribute.name == "kernel_shape"
        or (attribute.name in _OF_ONE and values == {1})
        or (attribute.name in _OF_ZERO and values == {0})
    )


def _merge_reshapes(node: Any, made: dict[str, Any], constants: dict[str, np.ndarray]) -> None:
    """Let a node that reshapes what was reshaped read what that was before."""
    if node.op_type != "Reshape" or node.domain:
        return
    before = made.get(node.input[0])
    shape = constants.get(node.input[1])
    # A zero stands for a size of the input.
    if (
        before is not None
        and before.op_type in ("Reshape", "Squeeze", "Unsqueeze")
        and shape is not None
        and shape.all()
    ):
        node.input[0] = before.input[0]


def _live(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """The nodes that outputs depend on."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    return kept[::-1]


def _type(value: Any) -> tuple[int, tuple[int, ...] | None]:
    """Type and shape of a value; None for a shape that is not known or has open sizes."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        return kind.elem_type, None
    return kind.elem_type, tuple(dim.dim_value for dim in kind.shape.dim)


def _constant(node: Any) -> Any:
    import onnx

    (attribute,) = node.attribute
    if attribute.name == "value":
        return onnx.numpy_helper.to_array(attribute.t)
    dtype = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    return np.array(_value(attribute), dtype[attribute.name]) if attribute.name in dtype else None


def _value(attribute: Any) -> Any:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    return value if isinstance(value, (int, float, bytes)) else list(value) if not hasattr(value, "ByteSize") else value


def serialized_attributes(node: Any) -> list[bytes]:
    """The attributes of a node, equal for those of equal names and values."""
    return sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
