"""What the modules of a model refer to outside of their tables: other modules and parameters, in whatever way.

A list of weights, a lambda over `self`, a replaced `forward`, a reference back to the parent: `named_parameters()`
shows none of these, but a forward reaches weights through them.
"""

from __future__ import annotations

import dis
import gc
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from functools import cache, partial
from types import BuiltinFunctionType, CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

_TABLES = ("_parameters", "_buffers", "_modules")
_LEAVES = (str, bytes, int, float, complex, bool, type(None), ModuleType, CodeType, torch.dtype, torch.device, fx.Graph)
# The types of most attributes.
_PLAIN = frozenset({str, bytes, int, float, complex, bool, type(None)})
_OF_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"})
# Torch's own recurrent layers keep these, and renew them.
_FLAT_WEIGHTS = ("_flat_weights", "_flat_weight_refs")


class Reference(NamedTuple):
    """Something that a module refers to.

    Attributes:
        path: how one gets there from the module, such as `"steps[0]"`.
        target: what it is.
        container: the list or dictionary that holds it, in which it can be replaced; None for any other holder.
        key: where in it.
    """

    path: str
    target: Any
    container: Any = None
    key: Any = None


def references_of(module: nn.Module, with_class: bool = True) -> Iterator[Reference]:
    """Everything that one module refers to in attributes, except by its tables.

    Modules are found, but not what they refer to themselves.

    Args:
        module: the module.
        with_class: whether to look at what its class refers to, too.
    """
    pending = [
        Reference(name, value)
        for name, value in vars(module).items()
        if type(value) not in _PLAIN
        and not _is_empty_table(value)
        and name not in _TABLES
        and not (name in _FLAT_WEIGHTS and isinstance(module, nn.RNNBase))
    ]
    if not with_class:
        return _walk(pending)
    kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.", "builtins"))]
    pending += [
        Reference(f"{kind.__name__}.{name}", value)
        for kind in kinds
        for name, value in vars(kind).items()
        if not name.startswith("__") or name == "__call__"
    ]
    return _walk(pending)


def _is_empty_table(value: Any) -> bool:
    """Whether a value is a dictionary of hooks without any, of which each module has eight."""
    return type(value) is OrderedDict and not value


def references_from(value: Any, path: str = "") -> Iterator[Reference]:
    """A value, and everything that it refers to."""
    return _walk([Reference(path, value)])


def _walk(pending: list[Reference]) -> Iterator[Reference]:
    seen: set[int] = set()
    while pending:
        reference = pending.pop()
        target = reference.target
        if type(target) in _PLAIN or id(target) in seen or isinstance(target, _LEAVES):
            continue
        seen.add(id(target))
        yield reference
        if not isinstance(target, (nn.Module, Tensor, np.ndarray)):
            pending.extend(_parts(reference))


def _parts(reference: Reference) -> Iterator[Reference]:
    path, target = reference.path, reference.target
    if isinstance(target, Mapping):
        for key, value in list(target.items()):
            yield Reference(f"{path}[{key!r}]", value, target if type(target) is dict else None, key)
            if not isinstance(key, _LEAVES):
                yield Reference(f"{path}.keys()", key)
    elif isinstance(target, (list, tuple, deque, set, frozenset)):
        for index, value in enumerate(target):
            yield Reference(f"{path}[{index}]", value, target if type(target) is list else None, index)
    elif isinstance(target, FunctionType):
        yield from _of_function(path, target)
    elif isinstance(target, CellType):
        if is_filled(target):
            yield Reference(path, target.cell_contents)
    elif isinstance(target, MethodType):
        yield Reference(f"{path}.__self__", target.__self__)
        yield Reference(f"{path}.__func__", target.__func__)
    elif isinstance(target, partial):
        for index, value in enumerate((target.func, *target.args, *target.keywords.values())):
            yield Reference(f"{path}.args[{index}]", value)
    elif isinstance(target, FrameType):
        # That of a generator.
        yield from (Reference(path, each) for each in held_by_frame(target))
    elif isinstance(target, (staticmethod, classmethod)):
        yield Reference(path, target.__func__)
    elif isinstance(target, property):
        yield from (Reference(path, each) for each in (target.fget, target.fset) if each is not None)
    elif isinstance(target, weakref.ref):
        yield Reference(f"{path}()", target())
    elif isinstance(target, (type, BuiltinFunctionType)):
        return
    else:
        for name, value in attributes_of(target).items():
            yield Reference(f"{path}.{name}", value)
        if hasattr(type(target), "__next__"):
            yield from (Reference(f"next({path})", each) for each in gc.get_referents(target))


def held_by_frame(frame: FrameType) -> list[Any]:
    """What the frame of a generator that stands still refers to, without what lies around it.

    From Python 3.11 on it is the generator itself that refers to all this.
    """
    around = {id(each) for each in (frame.f_back, frame.f_globals, frame.f_builtins)}
    return [each for each in gc.get_referents(frame) if id(each) not in around]


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes that an object has itself, also those in slots."""
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    filled = {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}
    return {**getattr(value, "__dict__", {}), **filled}


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of_function(path: str, function: FunctionType) -> Iterator[Reference]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__" and is_filled(cell):
            yield Reference(f"{path}.<{name}>", cell.cell_contents)
    for index, value in enumerate((*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())):
        yield Reference(f"{path}.__defaults__[{index}]", value)
    for name, value in vars(function).items():
        yield Reference(f"{path}.{name}", value)
    for name in globals_in(code):
        value = function.__globals__.get(name)
        # A variable that holds a module or weight; what else the surroundings of a function hold is not its own.
        if isinstance(value, (nn.Module, Tensor, list, tuple, dict)):
            yield Reference(f"{path}.<global {name}>", value)


def is_filled(cell: CellType) -> bool:
    """Whether the variable of a cell has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def names_in(code: CodeType) -> set[str]:
    """The names that a function uses, and the functions in it."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return {*code.co_names, *(name for each in inner for name in names_in(each))}


@cache
def globals_in(code: CodeType) -> frozenset[str]:
    """The names of variables of its module that a function uses or sets, and the functions in it."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    own = (each.argval for each in dis.get_instructions(code) if each.opname in _OF_GLOBALS)
    return frozenset([*own, *(name for each in inner for name in globals_in(each))])
