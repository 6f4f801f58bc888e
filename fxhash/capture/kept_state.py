"""What a model keeps from call to call, however it keeps it: a traced forward must not change it.

Attributes, containers, plain objects, variables of functions and modules, random number generators of Python and
numpy. Each is remembered by the objects in it, so that a later look shows whether it holds the same ones.
"""

from __future__ import annotations

import pickle
import random
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import is_
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxhash.capture.iterators import is_written_in_python, position_of
from fxhash.capture.observed_proxy import MISSING, UnknownAttribute
from fxhash.capture.real_tensors import storage_of
from fxhash.capture.references import attributes_of, is_filled

_VALUES = (bool, int, float, complex, str, bytes)
_NUMPY_GENERATORS = (np.random.Generator, np.random.RandomState)


@dataclass(frozen=True)
class _Kept:
    """Something that can change, and what it held when it was first seen."""

    holder: Any
    content: Any

    def is_unchanged(self) -> bool:
        return _is_same(_content(self.holder), self.content)

    def restore(self) -> None:
        """Put back what it held, where that can be done."""
        holder, content = self.holder, self.content
        if isinstance(holder, random.Random):
            holder.setstate(content)
        elif isinstance(holder, dict):
            _refill(holder, _entries(content))
        elif isinstance(holder, (list, deque)):
            holder.clear()
            holder.extend(content)
        elif isinstance(holder, set):
            holder.clear()
            holder.update(content)
        elif isinstance(holder, bytearray):
            holder[:] = content
        elif isinstance(holder, np.ndarray):
            holder[...] = content
        elif isinstance(holder, type):
            before = dict(content)
            for name in {*dict(_content(holder)), *before}:
                if name in before:
                    setattr(holder, name, before[name])
                else:
                    delattr(holder, name)
        elif isinstance(holder, CellType):
            if content:
                (holder.cell_contents,) = content
            else:
                del holder.cell_contents
        elif hasattr(holder, "cache_clear"):
            # What it kept is of this trace, or is computed again.
            holder.cache_clear()
        elif isinstance(holder, torch.Generator):
            holder.set_state(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        elif isinstance(holder, np.random.Generator):
            holder.bit_generator.state = pickle.loads(content)
        elif isinstance(holder, np.random.RandomState):
            holder.set_state(pickle.loads(content))
        elif _is_kept_by_attributes(holder):
            before = _entries(content)
            for name in {*attributes_of(holder), *before}:
                if name in before:
                    object.__setattr__(holder, name, before[name])
                else:
                    object.__delattr__(holder, name)


class _Group:
    """What is compared together, each with the name to report; all dictionaries at once, as most never change."""

    def __init__(self, found: Iterable[tuple[str, _Kept]]) -> None:
        self._found = list(found)
        self._dictionaries = [kept.holder for _, kept in self._found if isinstance(kept.holder, dict)]
        self._others = [(name, kept) for name, kept in self._found if not isinstance(kept.holder, dict)]
        self._sizes = list(map(len, self._dictionaries))
        contents = [kept.content for _, kept in self._found if isinstance(kept.holder, dict)]
        self._entries = list(chain.from_iterable(contents))

    def first_changed(self) -> str | None:
        now = chain.from_iterable(chain(each.keys(), each.values()) for each in self._dictionaries)
        same_sizes = list(map(len, self._dictionaries)) == self._sizes
        dictionaries_are_same = same_sizes and all(map(is_, now, self._entries))
        return _first_changed(self._others if dictionaries_are_same else self._found)


class KeptState:
    """The state of a model as it was before a trace.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept: dict[int, _Kept] = {}
        self._of_module: dict[int, list[tuple[str, _Kept]]] = {}
        self._of_subtree: dict[int, _Group] = {}
        # Of functions, classes and variables outside of the model.
        self._around: list[tuple[str, _Kept]] = []
        self._codes: set[int] = set()
        self._modules = {id(module): module for module in model.modules()}
        self.storages: set[int] = set()
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self._remember_module(module)

    def _remember_module(self, module: nn.Module) -> None:
        found = self._of_module[id(module)] = []
        for name, value in vars(module).items():
            label = "" if name in ("_parameters", "_buffers", "_modules") else name
            found.extend((label, kept) for kept in self._remember(value))
        # The dictionary of a module changes where a name in it gets another value.
        found.extend(("", kept) for kept in self._remember(vars(module)))
        for kind in type(module).__mro__:
            if kind.__module__.startswith("torch."):
                break
            self._around.extend((kind.__name__, kept) for kept in self._remember(kind))

    def remember_around(self, code: CodeType, variables: dict[str, Any]) -> None:
        """Remember the variables outside of a function that its code names."""
        if id(code) not in self._codes:
            self._codes.add(id(code))
            for name in code.co_names:
                if name in variables:
                    self._around.extend((name, kept) for kept in self._remember(variables[name]))

    def changed_in(self, module: nn.Module) -> str | None:
        """The name of something that changed in a module, or in one nested in it; None if nothing did."""
        key = id(module)
        if key not in self._of_subtree:
            nested = (kept for each in module.modules() for kept in self._of_module.get(id(each), ()))
            self._of_subtree[key] = _Group(nested)
        return self._of_subtree[key].first_changed()

    def changed_around(self) -> str | None:
        """The name of something that changed outside of the modules; None if nothing did."""
        return _first_changed(self._around)

    def restore_around(self) -> None:
        """Put back what changed around the modules."""
        for _, kept in self._around:
            if not kept.is_unchanged():
                kept.restore()

    def restore(self, module: nn.Module) -> bool:
        """Put back what changed in a module, in one nested in it, or around them; false where that can't be done."""
        restored = True
        found = [kept for each in module.modules() for _, kept in self._of_module.get(id(each), ())]
        for kept in (*found, *(kept for _, kept in self._around)):
            if not kept.is_unchanged():
                kept.restore()
                restored &= kept.is_unchanged()
        return restored

    def _remember(self, value: Any) -> Iterator[_Kept]:
        pending = [value]
        while pending:
            each = pending.pop()
            if id(each) in self._kept or id(each) in self._modules:
                continue
            if isinstance(each, Tensor):
                storage = storage_of(each)
                if storage is not None:
                    self.storages.add(storage)
            content = _content(each)
            if content is None:
                continue
            kept = self._kept[id(each)] = _Kept(each, content)
            if not isinstance(each, (tuple, MethodType)):
                yield kept
            pending.extend(_parts(content))


def _first_changed(found: Iterable[tuple[str, _Kept]]) -> str | None:
    for name, kept in found:
        if not kept.is_unchanged():
            return name or _changed_key(kept)
    return None


def _changed_key(kept: _Kept) -> str:
    """Which entry of a dictionary changed."""
    before, now = _entries(kept.content), _entries(_content(kept.holder))
    for name in (*before, *now):
        if name not in before or name not in now or not _is_same(before[name], now[name]):
            return str(name)
    return "the order of its attributes"


def _refill(holder: dict[Any, Any], entries: dict[Any, Any]) -> None:
    holder.clear()
    holder.update(entries)


def _entries(content: Sequence[Any]) -> dict[Any, Any]:
    """What a dictionary held: its keys come first, then its values."""
    half = len(content) // 2
    return dict(zip(content[:half], content[half:], strict=True))


def _as_it_was(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module as they were before some of them were hidden."""
    before = {name: each.original if type(each) is UnknownAttribute else each for name, each in attributes.items()}
    return {name: each for name, each in before.items() if each is not MISSING}


def _content(value: Any) -> Any:
    """What something that can change holds, one level deep; None for what can't change or is no model's state."""
    if isinstance(value, dict):
        if any(type(each) is UnknownAttribute for each in value.values()):
            value = _as_it_was(value)
        return [*value.keys(), *value.values()]
    if isinstance(value, Tensor):
        # The copy that is traced shares parameters with the model, which another thread may train meanwhile.
        return None if value.is_inference() or isinstance(value, nn.Parameter) else value._version
    if value is None or isinstance(value, (*_VALUES, ModuleType, fx.Proxy, fx.Graph, CodeType)):
        return None
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().tolist())
    if isinstance(value, _NUMPY_GENERATORS):
        bits = value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state(legacy=False)
        return pickle.dumps(bits)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, (list, deque, tuple, WeakSet)):
        return list(value)
    if isinstance(value, (WeakKeyDictionary, WeakValueDictionary)):
        return [*value.keys(), *value.values()]
    if isinstance(value, (set, bytearray)):
        return type(value)(value)
    if isinstance(value, FunctionType):
        return [*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__, vars(value)]
    if isinstance(value, CellType):
        return [value.cell_contents] if is_filled(value) else []
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.items()]
    if hasattr(value, "cache_info") and callable(value):
        return tuple(value.cache_info())
    if isinstance(value, type):
        return _class_content(value)
    if _is_kept_by_attributes(value):
        attributes = attributes_of(value)
        if attributes or hasattr(value, "__dict__"):
            return [*attributes.keys(), *attributes.values()]
    return position_of(value) if hasattr(type(value), "__next__") else None


def _is_kept_by_attributes(value: Any) -> bool:
    """Whether what an object holds is its attributes, and nothing else that is known."""
    if isinstance(value, (tuple, FunctionType, MethodType, partial)):
        return False
    if hasattr(type(value), "__next__") and not is_written_in_python(type(value)):
        return False
    return isinstance(value, nn.Module) or not _is_of_library(type(value))


def _is_of_library(kind: type) -> bool:
    """Whether a class is Python's, torch's or ours, such as a logger: its objects' memory is no state of a model."""
    package = kind.__module__.split(".")[0]
    ours = kind.__module__.startswith("fxhash.") and not kind.__module__.startswith("fxhash.zoo.")
    return (
        package == "torch" or ours or (package in sys.stdlib_module_names and kind not in (SimpleNamespace, Namespace))
    )


def _class_content(kind: type) -> list[tuple[str, Any]] | None:
    """The plain attributes of a class, and its functions, whose defaults can change."""
    if _is_of_library(kind):
        return None
    return [
        (name, value) for name, value in vars(kind).items() if isinstance(value, FunctionType) or is_plain(name, value)
    ]


def is_immutable(value: Any) -> bool:
    """Whether a value can't change: a number, a string, None, or a tuple of these."""
    if isinstance(value, tuple):
        return all(map(is_immutable, value))
    return value is None or isinstance(value, _VALUES)


def is_plain(name: str, value: Any) -> bool:
    """Whether an attribute of a class is a value that its objects share, and no function or property."""
    return not name.startswith("__") and not hasattr(type(value), "__get__")


def _parts(content: Any) -> Iterator[Any]:
    if isinstance(content, (list, tuple, set)):
        for each in content:
            if isinstance(each, tuple) and not hasattr(each, "_fields"):
                yield from each
            else:
                yield each


def _is_same(now: Any, before: Any) -> bool:
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(now, (list, tuple)):
        return len(now) == len(before) and (all(map(is_, now, before)) or all(map(_is_same, now, before)))
    if isinstance(now, _VALUES):
        return bool(now == before)
    if isinstance(now, np.ndarray):
        return now.dtype != object and np.array_equal(now, before, equal_nan=now.dtype.kind in "fc")
    # Sets of the same objects; compared by identity, since a value of the graph can't be compared.
    return (isinstance(now, set) and {*map(id, now)} == {*map(id, before)}) or (
        isinstance(now, bytearray) and now == before
    )
