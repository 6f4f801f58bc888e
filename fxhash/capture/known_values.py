"""Which values of a graph are certain not to be None, as far as what gives them says."""

from __future__ import annotations

import operator
from collections.abc import Callable

from torch import Tensor, fx

from fxhash.capture.known_lengths import known_length
from fxhash.graph.guards import of_length
from fxhash.graph.numbers import NEVER_NONE

# Of a tensor; others, such as `grad`, may be None.
_NEVER_NONE = frozenset(["shape", "dtype", "device", "ndim", "layout", "T", "mT", "real", "imag", "is_cuda", "data"])


def is_never_none(node: fx.Node, returns_something: Callable[[str], bool]) -> bool:
    """Whether a value can't be None.

    Args:
        node: gives the value.
        returns_something: says of a module that the graph calls whether it can't return None.
    """
    if node.op == "get_attr":
        return True
    if node.op == "call_module":
        return returns_something(str(node.target))
    if node.op == "call_method":
        return is_method_of_tensors(str(node.target))
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _NEVER_NONE
    if node.target is operator.getitem:
        # A slice of anything that torch returns is a tensor or a tuple, and several indices only a tensor takes; but a
        # module may return a dictionary, whose keys are tuples.
        base, key = node.args
        if not isinstance(base, fx.Node):
            return False
        is_sliced = _is_slice(key) or (isinstance(key, tuple) and base.op != "call_module")
        return (is_sliced and is_never_none(base, returns_something)) or _holds_no_none(base)
    module = getattr(node.target, "__module__", None) or ""
    name = getattr(node.target, "__name__", "_")
    if module in ("_operator", "fxhash.graph.in_place") or node.target is of_length or node.target in NEVER_NONE:
        return True
    return is_function_that_gives(module, name)


def is_function_that_gives(module: str, name: str) -> bool:
    """Whether a function of this name is one that gives something: those of torch and einops do."""
    return module.partition(".")[0] in ("torch", "einops") and not name.startswith("_")


def is_method_of_tensors(name: str) -> bool:
    """Whether a method of this name is one of tensors, and not of Python's containers, that gives something."""
    return hasattr(Tensor, name) and not any(hasattr(kind, name) for kind in (dict, list, str))


def _is_slice(key: object) -> bool:
    return isinstance(key, slice) or (isinstance(key, tuple) and any(isinstance(each, slice) for each in key))


def _holds_no_none(value: fx.Node) -> bool:
    if value.target is getattr:
        return bool(value.args[1] == "shape")
    return value.target is of_length or known_length(value) is not None
