"""Functions of Python and torch that answer at once, such as `int` and `torch.finfo`: calls with a value are recorded.

A function of Python's own gets another only in the file of a model that does nothing with its name but call it: by
identity, as in `type(x) is int`, the other one would be noticed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from threading import get_ident
from types import CodeType
from typing import Any

import torch
from torch import fx

from fxhash.capture.known_lengths import known_length
from fxhash.capture.observed_proxy import ObservedTensor
from fxhash.capture.sources import file_of
from fxhash.graph.numbers import OF_PYTHON, OF_TORCH

_OF_SIZES = frozenset(["zeros", "ones", "empty", "rand", "randn"])

Replaced = tuple[dict[str, Any], str, Callable[..., Any]]


def number_functions(code: CodeType, variables: dict[str, Any], thread: int) -> Iterator[Replaced]:
    """What to replace while a function is traced: variables, a name in them, and what it gets.

    Args:
        code: the function's own code.
        variables: those of its module.
        thread: the thread that traces.
    """
    used = {*code.co_names}
    for name in used & OF_PYTHON.keys():
        if name not in variables and name in _only_called(code):
            yield variables, name, RecordedNumber(*OF_PYTHON[name], thread)
    for name in used & OF_TORCH.keys():
        if not isinstance(vars(torch)[name], RecordedNumber):
            yield vars(torch), name, RecordedNumber(*OF_TORCH[name], thread)
    for name in used & _OF_SIZES:
        function = vars(torch)[name]
        if not isinstance(function, SizesInTuple) and name in _called_with_sizes(code):
            yield vars(torch), name, SizesInTuple(function, thread)


class RecordedNumber:
    """Stands for a function or class for as long as a trace runs: in one thread it records calls with a value.

    Args:
        function: the function or class.
        recorded: what a graph calls instead.
        thread: the thread.

    Attributes:
        function: the function or class.
    """

    def __init__(self, function: Callable[..., Any], recorded: Callable[..., Any], thread: int) -> None:
        self.function = function
        self._recorded = recorded
        self._thread = thread

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, or record that it is called."""
        if get_ident() == self._thread and not kwargs:
            if self.function in (min, max) and len(args) == 1 and type(args[0]) in (list, tuple) and len(args[0]) > 1:
                args = tuple(args[0])
            proxy = next((each for each in args if _is_value(each)), None)
            if proxy is not None and not (self.function is len and _has_known_length(proxy)):
                return proxy.tracer.create_proxy("call_function", self._recorded, args, {})
        return self.function(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self.function)  # type: ignore[arg-type]

    def __or__(self, other: Any) -> Any:
        return self.function | other

    def __ror__(self, other: Any) -> Any:
        return other | self.function

    def __getattr__(self, name: str) -> Any:
        return getattr(self.function, name)


class SizesInTuple:
    """Stands for a function such as `torch.zeros`: where one of several sizes is a value, it is given one tuple.

    Torch records only this form: in the other it takes the second size for an argument too many. Before torch 2.7 it
    records neither.

    Args:
        function: the function.
        thread: the thread that traces.
    """

    def __init__(self, function: Callable[..., Any], thread: int) -> None:
        self._function = function
        self._thread = thread

    def __call__(self, *sizes: Any, **kwargs: Any) -> Any:
        """Call the function."""
        if get_ident() == self._thread and len(sizes) > 1 and any(map(_is_value, sizes)):
            return self._function(sizes, **kwargs)
        return self._function(*sizes, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def _is_value(argument: Any) -> bool:
    """Whether an argument is a value of the graph, found without asking it."""
    return issubclass(type(argument), fx.Proxy)


def _has_known_length(proxy: fx.Proxy) -> bool:
    return issubclass(type(proxy), ObservedTensor) or known_length(proxy.node) is not None


def _only_called(code: CodeType) -> frozenset[str]:
    """The names of functions that the file of some code only calls."""
    tree = file_of(code)
    return frozenset() if tree is None else _called_in(tree)


def _called_with_sizes(code: CodeType) -> frozenset[str]:
    """The functions that take sizes to which the file of some code gives several that are no constants."""
    tree = file_of(code)
    return frozenset() if tree is None else _with_sizes_in(tree)


@cache
def _with_sizes_in(tree: ast.AST) -> frozenset[str]:
    return frozenset(
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (len(node.args) > 1 or any(isinstance(each, ast.Starred) for each in node.args))
        and not all(isinstance(each, ast.Constant) for each in node.args)
    )


@cache
def _called_in(tree: ast.AST) -> frozenset[str]:
    fine: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            fine.add(id(node.func))
            name = getattr(node.func, "id", "")
            if name == "map":
                fine |= {id(each) for each in node.args[:1]}
            elif name == "isinstance" and len(node.args) == 2:
                kinds = node.args[1]
                fine |= {id(each) for each in (kinds.elts if isinstance(kinds, ast.Tuple) else [kinds])}
        for field in ("annotation", "returns"):
            annotation = getattr(node, field, None)
            fine |= {id(each) for each in ast.walk(annotation)} if isinstance(annotation, ast.AST) else set()
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in OF_PYTHON]
    return frozenset(OF_PYTHON) - {node.id for node in names if id(node) not in fine}
