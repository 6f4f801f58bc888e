"""Which values of a graph are certain not to be None, as far as the calls that give them say."""

from __future__ import annotations

import operator

from torch import Tensor, fx

from fxhash.capture.known_lengths import known_length
from fxhash.graph.guards import of_length
from fxhash.graph.numbers import NEVER_NONE

# Of a tensor; others, such as `grad`, may be None.
_NEVER_NONE = frozenset(["shape", "dtype", "device", "ndim", "layout", "T", "mT", "real", "imag", "is_cuda", "data"])


def is_never_none(node: fx.Node) -> bool:
    """Whether the value of a call of a function or method can't be None."""
    if node.op == "call_method":
        name = str(node.target)
        return hasattr(Tensor, name) and not any(hasattr(kind, name) for kind in (dict, list, str))
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _NEVER_NONE
    if node.target is operator.getitem:
        return _holds_no_none(node.args[0])
    module = getattr(node.target, "__module__", None) or ""
    name = getattr(node.target, "__name__", "_")
    if module in ("_operator", "fxhash.graph.in_place") or node.target is of_length or node.target in NEVER_NONE:
        return True
    return module.startswith(("torch", "einops")) and not name.startswith("_")


def _holds_no_none(value: object) -> bool:
    if not isinstance(value, fx.Node):
        return False
    if value.target is getattr:
        return bool(value.args[1] == "shape")
    return value.target is of_length or known_length(value) is not None
