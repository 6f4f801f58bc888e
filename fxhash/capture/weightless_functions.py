"""Functions of a model's own code that reach no weight and keep no state: a graph may call them as they are.

Where such a function can't be followed, since it switches autocast off or branches on a value, one node calls it. What
a function may reach is read off its code, and that of those it calls: each variable outside of it must be a plain
value, a function that is as harmless itself, or something of torch, numpy, einops or `math`.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType, TracebackType
from typing import Any

import torch

from fxhash.capture.held import is_immutable
from fxhash.capture.references import globals_in, is_filled, names_in
from fxhash.capture.user_code import is_user_code
from fxhash.capture.wrapped_functions import Called, without_stand_in

_LIBRARIES = frozenset(["torch", "numpy", "einops", "math", "cmath", "operator", "itertools", "functools", "random"])
# Of these libraries: what keeps something from one call to the next, or shows what is called and by whom.
_UNSUITABLE = frozenset(
    (
        *("cache", "lru_cache", "cached_property", "overrides", "fx", "jit", "_dynamo", "compile", "load", "save"),
        *("manual_seed", "seed", "set_rng_state", "setstate", "set_default_dtype", "set_default_device"),
        *("set_grad_enabled", "set_num_threads", "use_deterministic_algorithms", "requires_grad_", "Parameter"),
        *("hooks", "register_hook", "library", "_C", "attrgetter", "methodcaller"),
    )
)
_UNSUITABLE_OF_PYTHON = frozenset(
    (
        *("eval", "exec", "compile", "globals", "locals", "vars", "dir", "id", "open", "input", "breakpoint"),
        *("__import__", "getattr", "setattr", "delattr", "super", "memoryview", "iter", "next"),
    )
)
# Attributes by which code leaves what it was given.
_LEADS_ELSEWHERE = frozenset(["gi_frame", "f_back", "f_globals", "f_locals", "tb_frame", "tb_next", "mro"])
_CHANGES = ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR", "IMPORT_NAME", "IMPORT_FROM", "IMPORT_STAR")
_CONTEXTS = (torch.autocast, torch.no_grad, torch.enable_grad, torch.inference_mode)
_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format, type(Ellipsis))
_IS_GENERATOR = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def weightless_functions_in(traceback: TracebackType | None) -> Iterator[Called]:
    """The functions that were running when an error was raised, and that a graph may call: the innermost first."""
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for caller, frame in reversed([*pairwise(frames)]):
        if is_user_code(caller.f_code):
            for name in caller.f_code.co_names:
                function = without_stand_in(caller.f_globals.get(name))
                if isinstance(function, FunctionType) and _runs_in(function, frame) and is_weightless(function):
                    yield Called(function, caller.f_globals, name)


def _runs_in(function: FunctionType, frame: FrameType) -> bool:
    """Whether a frame is that of a function, and not of another one that a decorator made of the same code."""
    if function.__code__ is not frame.f_code:
        return False
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return all(frame.f_locals.get(name) is cell.cell_contents for name, cell in cells if is_filled(cell))


def is_weightless(function: FunctionType) -> bool:
    """Whether a function reaches no weight but by its arguments, keeps nothing, and is found again by its name."""
    if not _is_found_by_name(function):
        return False
    seen: set[int] = set()
    pending = [function]
    while pending:
        each = pending.pop()
        if id(each) not in seen:
            seen.add(id(each))
            reached = _reached_by(each)
            if reached is None:
                return False
            pending += reached
    return True


def is_plain_argument(value: Any) -> bool:
    """Whether an argument that is no value of the graph can be written into it, and can't be changed by a function."""
    if type(value) is tuple:
        return all(map(is_plain_argument, value))
    return is_immutable(value) or isinstance(value, _PLAIN)


def _is_found_by_name(function: FunctionType) -> bool:
    """Whether the module of a function has it under its name, so that it can be pickled."""
    found = vars(sys.modules.get(function.__module__, builtins)).get(function.__qualname__)
    return without_stand_in(found) is function


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes_in(const)


def _reached_by(function: FunctionType) -> list[FunctionType] | None:
    """The other functions of a model's code that one reaches; None if it may reach more, or keep something."""
    found: list[FunctionType] = []
    held = [cell.cell_contents for cell in function.__closure__ or () if is_filled(cell)]
    held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values()]
    if is_user_code(function.__code__) and not _is_of_library(function):
        codes = list(_codes_in(function.__code__))
        if not all(map(_is_harmless, codes)):
            return None
        names = {name for code in codes for name in globals_in(code)}
        for name in names:
            if name in function.__globals__:
                held.append(function.__globals__[name])
            elif name in _UNSUITABLE_OF_PYTHON or not hasattr(builtins, name):
                return None
    for value in map(without_stand_in, held):
        if isinstance(value, FunctionType) and not _is_of_library(value):
            found.append(value)
        elif not _is_suitable(value):
            return None
    return found


def _is_harmless(code: CodeType) -> bool:
    if code.co_flags & _IS_GENERATOR and code.co_name != "<genexpr>":
        return False
    names = names_in(code)
    if names & (_LEADS_ELSEWHERE | _UNSUITABLE) or any(_is_inner(name) for name in names):
        return False
    for operation in dis.get_instructions(code):
        outside = operation.opname in ("STORE_DEREF", "DELETE_DEREF") and operation.argval in code.co_freevars
        if operation.opname in _CHANGES or outside:
            return False
    return True


def _is_inner(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in ("__getitem__", "__len__", "__name__")


def _is_of_library(value: Any) -> bool:
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    return module.partition(".")[0] in _LIBRARIES and not _is_of_a_models_own(value)


def _is_of_a_models_own(value: Any) -> bool:
    """Whether a function only bears the name of a library's module: by a decorator of it, it may be any function."""
    return (
        isinstance(value, FunctionType) and is_user_code(value.__code__) and "einops" not in value.__code__.co_filename
    )


def _is_suitable(value: Any) -> bool:
    """Whether something outside of a function is a plain value, or of a library that keeps no weights."""
    if is_plain_argument(value) or isinstance(value, _CONTEXTS):
        return True
    if isinstance(value, MethodType):
        return isinstance(value.__self__, _CONTEXTS)
    if isinstance(value, (ModuleType, type, BuiltinFunctionType)) or type(value) is FunctionType:
        if isinstance(value, (type, BuiltinFunctionType)) and value.__module__ == "builtins":
            return value.__name__ not in _UNSUITABLE_OF_PYTHON
        return _is_of_library(value) and getattr(value, "__name__", "").rpartition(".")[2] not in _UNSUITABLE
    return isinstance(value, Callable) and type(value).__module__ == "torch._ops"  # type: ignore[arg-type]
