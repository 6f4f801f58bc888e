"""What can be reached from a model: its attributes, containers, closures and histories, and the memory behind them."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from fxhash.original import Original

_CONTAINERS = (list, tuple, set, frozenset)


def reachable(root: object) -> Iterator[tuple[str, Any]]:
    """Everything that can be reached from `root`, each once, with a path to it that a reader can follow.

    Of the globals that a function names, those are followed that may hold a weight: containers, tensors, modules and
    functions.
    """
    pending: list[tuple[str, Any]] = [("model", root)]
    seen: dict[int, Any] = {}
    while pending:
        path, value = pending.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, types.ModuleType)):
            continue
        # Kept, so that no other object gets its id.
        seen[id(value)] = value
        yield path, value
        pending.extend((f"{path}{step}", each) for step, each in _next_to(value))


def memory_of(value: object) -> int | None:
    """The address of the memory behind a tensor or an array; None for anything else, and for none."""
    if isinstance(value, Tensor):
        try:
            return value.untyped_storage().data_ptr() or None
        except (NotImplementedError, RuntimeError):
            return None
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        return value.__array_interface__["data"][0]
    return None


def originals_reached(result: object, original: nn.Module) -> list[str]:
    """The paths in `result` that lead to a parameter of `original`, or to its memory."""
    parameters = dict(original.named_parameters(remove_duplicate=False))
    by_id = {id(parameter): name for name, parameter in parameters.items()}
    by_memory = {memory_of(parameter): name for name, parameter in parameters.items()}
    by_memory.pop(None, None)
    found = []
    for path, value in reachable(result):
        name = by_id.get(id(value)) or by_memory.get(memory_of(value))
        if name is not None:
            found.append(f"{path} is, or shares the memory of, {name}")
    return found


def _is_of_collections(value: Any) -> bool:
    # Not what gives the fields of named tuples, which has that module too as of Python 3.13.
    return type(value).__module__ == "collections" and isinstance(value, Iterable)


def _next_to(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, fx.Proxy):
        # Anything can be asked of it, and recorded.
        return
    if isinstance(value, type):
        yield from _of_class(value)
        return
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield f"[{key!r}]", each
            yield ".keys()", key
    elif isinstance(value, _CONTAINERS) or _is_of_collections(value):
        for index, each in enumerate(value):
            yield f"[{index}]", each
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, types.BuiltinMethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif isinstance(value, weakref.ref):
        yield "()", value()
    elif isinstance(value, types.FrameType):
        yield from _of_frame(value)
    elif type(value).__module__ in ("builtins", "itertools", "functools", "operator"):
        # Iterators, generators, method callers: Python knows what they hold, but has no name for it.
        for index, each in enumerate(gc.get_referents(value)):
            yield f".<{index}>", each
    elif isinstance(value, fx.Graph):
        for node in value.nodes:
            yield f".{node.name}", (node.args, node.kwargs, node.target, node.meta)
    if isinstance(value, Tensor):
        if value.is_leaf:
            yield ".grad", value.grad
        else:
            yield ".grad_fn", value.grad_fn
    for name, _ in getattr(value, "next_functions", ()):
        yield ".next_functions", name
    yield ".variable", getattr(value, "variable", None) if type(value).__name__ == "AccumulateGrad" else None
    if not isinstance(value, (types.FunctionType, fx.Node)):
        for name, each in getattr(value, "__dict__", {}).items():
            # Recurrent layers notice by weak references that their weights are others; copies keep the original's.
            # The class of the original is code; what its methods find in their module is the module's.
            if name != "_flat_weight_refs" and not (isinstance(value, Original) and name == "kind"):
                yield f".{name}", each
        for kind in type(value).__mro__:
            for name in _slots(kind):
                yield f".{name}", getattr(value, name, None)
    yield ".__class__", type(value)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    if kind.__module__.partition(".")[0] not in ("torch", "numpy", *sys.stdlib_module_names):
        for name, each in vars(kind).items():
            yield f".{name}", each
        for base in kind.__bases__:
            yield f".{base.__name__}", base


def _of_frame(frame: types.FrameType) -> Iterator[tuple[str, Any]]:
    """The variables of a generator that stands still, without those around it: up to Python 3.10 it has a frame."""
    around = {id(each) for each in (frame.f_back, frame.f_globals, frame.f_builtins)}
    for index, each in enumerate(gc.get_referents(frame)):
        if id(each) not in around:
            yield f".<{index}>", each


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__
    yield ".__wrapped__", vars(function).get("__wrapped__")
    yield ".__dict__", vars(function)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".<{name}>", cell.cell_contents
        except ValueError:
            continue
    if (function.__module__ or "").startswith(("torch", "numpy")):
        return
    for name in function.__code__.co_names:
        each = function.__globals__.get(name)
        if isinstance(each, (list, dict, set, Tensor, nn.Module, types.FunctionType, partial)):
            yield f".<{name}>", each
