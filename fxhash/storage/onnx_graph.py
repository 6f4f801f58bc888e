"""What is taken out of an ONNX graph that an exporter made, since it hinders the runtime."""

from __future__ import annotations

from typing import Any

_COPIES = ("Cast", "CastLike", "Expand", "Identity", "Reshape")


def remove_zero_biases(model: Any) -> None:
    """Take away the biases of zeros that torch's exporter gives to convolutions without one, in place.

    They are computed, from a constant: ONNX Runtime neither folds a batch norm into such a convolution nor lays its
    input out in blocks of channels, and takes half as long again.

    Args:
        model: an `onnx_ir.Model`.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 3 and _is_zero(node.inputs[2]):
            node.resize_inputs(2)
    RemoveUnusedNodesPass()(model)


def _is_zero(value: Any) -> bool:
    """Whether a value is computed from a constant zero alone."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _COPIES:
        value = node.inputs[0]
        node = value.producer()
    if node is None or node.op_type != "Constant":
        return False
    (attribute,) = node.attributes.values()
    constant = attribute.as_tensor().numpy() if attribute.name == "value" else attribute.value
    return not isinstance(constant, (str, list, tuple)) and not constant
