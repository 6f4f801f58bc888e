"""Functions that `torch.fx.wrap` names, of `math`, einops and those of numbers: calls with a value are recorded.

Each is replaced where its module has it, as `torch.fx` does. The replacement asks for the thread: in all others it is
the function itself.
"""

from __future__ import annotations

import builtins
import functools
import math
import os
import sys
from collections.abc import Callable
from threading import get_ident
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, NamedTuple

import torch.fx._symbolic_trace as symbolic_trace
from torch import fx
from torch.utils._pytree import tree_leaves

from fxhash.capture.number_functions import RecordedNumber, number_functions

_MISSING = object()
_EINOPS = ("rearrange", "reduce", "repeat", "einsum", "pack", "unpack")
# What is replaced now: the variables of a module, a name in them, and what it had before.
_replaced: list[tuple[dict[str, Any], str, Any]] = []


class Called(NamedTuple):
    """A function that a frame calls by a variable of its module.

    Attributes:
        function: the function.
        variables: those of the module of the code that calls it.
        name: its name there.
    """

    function: FunctionType
    variables: dict[str, Any]
    name: str


class RecordedFunctions:
    """Replaces functions by such that record their calls with a value of the graph, in this thread alone.

    No two threads may use one at a time. Functions of `math` are replaced, too: torch's own tracer records these. Those
    of einops ask for the type of what they are given, and do the same to any tensor.
    """

    def __init__(self) -> None:
        self._thread = get_ident()

    def __enter__(self) -> RecordedFunctions:
        for (_, name), variables in list(symbolic_trace._wrapped_fns_to_patch.items()):
            before = variables.get(name, _MISSING)
            function = getattr(builtins, name, None) if before is _MISSING else before
            if callable(function):
                self._replace(variables, name, before, function)
        self.replace_in(vars(math))
        if "einops" in sys.modules:
            self.replace_in(vars(sys.modules["einops"]))
        return self

    def replace_in(self, variables: dict[str, Any]) -> None:
        """Replace functions of `math` and of einops among the variables of a module."""
        for name, value in list(variables.items()):
            of_math = type(value) is BuiltinFunctionType and value.__module__ == "math"
            if of_math or (type(value) is FunctionType and _is_of_einops(value)):
                self._replace(variables, name, value, value)

    def replace_for(self, code: CodeType, variables: dict[str, Any]) -> None:
        """Replace what a function calls: the same, and functions that give numbers.

        Args:
            code: the function's own code.
            variables: those of its module.
        """
        self.replace_in(variables)
        for names, name, function in number_functions(code, variables, self._thread):
            _replaced.append((names, name, names.get(name, _MISSING)))
            names[name] = function

    def replace_called(self, called: Called, record: Callable[..., Any]) -> None:
        """Replace a function of a model's own where it is called.

        Args:
            called: the function, and by what variable it is called.
            record: is called instead with the function and its arguments, where a value is among these.
        """
        variables, name, function = called.variables, called.name, called.function
        self._replace(variables, name, variables[name], function, record)

    def _replace(
        self, variables: dict[str, Any], name: str, before: Any, function: Callable[..., Any], record: Any = None
    ) -> None:
        _replaced.append((variables, name, before))
        variables[name] = _recording(function, self._thread, record or _one_node)

    def __exit__(self, *error: object) -> None:
        _put_back()


def _is_of_einops(function: FunctionType) -> bool:
    return (function.__module__ or "").startswith("einops.") and function.__name__ in _EINOPS


def _put_back() -> None:
    while _replaced:
        variables, name, before = _replaced.pop()
        if before is _MISSING:
            variables.pop(name, None)
        else:
            variables[name] = before


if hasattr(os, "register_at_fork"):
    # In a forked process, the thread that replaced them isn't there.
    os.register_at_fork(after_in_child=_put_back)


def without_stand_in(value: Any) -> Any:
    """What a variable of a module holds without regard to a trace: where a function is replaced, the function."""
    if isinstance(value, RecordedNumber):
        return value.function
    is_ours = isinstance(value, FunctionType) and value.__code__ in _OURS
    return vars(value)["__wrapped__"] if is_ours else value


def _one_node(function: Callable[..., Any], proxy: fx.Proxy, args: Any, kwargs: Any) -> Any:
    return proxy.tracer.create_proxy("call_function", function, args, kwargs)


def _recording(function: Callable[..., Any], thread: int, record: Callable[..., Any]) -> FunctionType:
    @functools.wraps(function)
    def record_or_call(*args: Any, **kwargs: Any) -> Any:
        if get_ident() == thread:
            proxy = next((each for each in tree_leaves((args, kwargs)) if isinstance(each, fx.Proxy)), None)
            if proxy is not None:
                return record(function, proxy, args, kwargs)
        return function(*args, **kwargs)

    return record_or_call  # type: ignore[return-value]


_OURS = frozenset([_recording(_put_back, 0, _one_node).__code__])
