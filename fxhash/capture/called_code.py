"""The code that the forward of a module may call, found by names: more than it does call, never less."""

from __future__ import annotations

import dis
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from fxhash.capture.references import globals_in, names_in, references_of
from fxhash.capture.user_code import is_user_code


def functions_called_by(module: nn.Module) -> Iterator[CodeType]:
    """The code of these functions."""
    return (function.__code__ for function in called_functions(module))


def called_functions(module: nn.Module) -> Iterator[FunctionType]:
    """The functions of a model's own code that the forward of a module may call."""
    modules = [each for each in module.modules() if not isinstance(each, torch.jit.ScriptModule)]
    members: dict[str, list[FunctionType]] = {}
    pending: list[FunctionType] = []
    for kind in {kind for each in modules for kind in type(each).__mro__ if not kind.__module__.startswith("torch.")}:
        for name, value in vars(kind).items():
            members.setdefault(name, []).extend(_functions_in(value))
    for name in ("forward", "__call__", "_call_impl", "__getattr__", "__getattribute__"):
        pending += members.get(name, [])
    for each in modules:
        pending += [r.target for r in references_of(each, with_class=False) if isinstance(r.target, FunctionType)]
    seen: set[CodeType] = set()
    while pending:
        function = pending.pop()
        if function.__code__ in seen or not is_user_code(function.__code__):
            continue
        seen.add(function.__code__)
        yield function
        for name in names_in(function.__code__):
            pending += members.get(name, [])
        for name in globals_in(function.__code__):
            pending += _functions_in(function.__globals__.get(name))


def _functions_in(value: Any) -> list[FunctionType]:
    candidates = [
        value,
        getattr(value, "__func__", None),
        getattr(value, "fget", None),
        getattr(value, "__wrapped__", None),
    ]
    return [each for each in candidates if isinstance(each, FunctionType)]


@cache
def fixed_attributes(kind: type) -> Container[str]:
    """The attributes that no code of a class sets but in `__init__`, as far as its source shows."""
    functions = [
        function
        for each in kind.__mro__
        if not each.__module__.startswith(("torch.", "builtins"))
        for name, value in vars(each).items()
        if name != "__init__"
        for function in _functions_in(value)
    ]
    mentioned = {name for function in functions for name in names_in(function.__code__)}
    if mentioned & {"setattr", "delattr", "vars", "__dict__", "__setattr__"}:
        return ()
    stored = {name for function in functions for name in _stored_by(function.__code__)}
    return _NotIn(frozenset(stored))


@dataclass(frozen=True)
class _NotIn:
    names: frozenset[str]

    def __contains__(self, name: object) -> bool:
        return name not in self.names


def _stored_by(code: CodeType) -> Iterator[str]:
    for operation in dis.get_instructions(code):
        if operation.opname in ("STORE_ATTR", "DELETE_ATTR"):
            yield operation.argval
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _stored_by(const)
