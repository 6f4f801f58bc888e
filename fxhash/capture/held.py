"""What something that can change holds, one level deep, remembered to be compared or put back.

What it holds is remembered by the objects, so that a later look shows whether it holds the same ones.
"""

from __future__ import annotations

import pickle
import random
import sys
from argparse import Namespace
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import is_
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxhash.capture.iterators import is_written_in_python, position_of
from fxhash.capture.observed_proxy import MISSING, UnknownAttribute
from fxhash.capture.references import attributes_of, is_filled

_VALUES = (bool, int, float, complex, str, bytes)
# The types of most attributes: nothing of these can change, or holds something that can.
PLAIN_TYPES = frozenset({*_VALUES, type(None)})
_NUMPY_GENERATORS = (np.random.Generator, np.random.RandomState)


@dataclass(frozen=True)
class Held:
    """Something that can change, and what it held when it was first seen."""

    holder: Any
    content: Any

    def is_unchanged(self) -> bool:
        """Whether it holds what it held."""
        return is_same(content_of(self.holder), self.content)

    def restore(self) -> None:
        """Put back what it held, where that can be done."""
        holder, content = self.holder, self.content
        if isinstance(holder, random.Random):
            holder.setstate(content)
        elif isinstance(holder, dict):
            _refill(holder, entries(content))
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
            for name in {*dict(content_of(holder)), *before}:
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
            before = entries(content)
            for name in {*attributes_of(holder), *before}:
                if name in before:
                    object.__setattr__(holder, name, before[name])
                else:
                    object.__delattr__(holder, name)


def _refill(holder: dict[Any, Any], entries: dict[Any, Any]) -> None:
    holder.clear()
    holder.update(entries)


def entries(content: Sequence[Any]) -> dict[Any, Any]:
    """What a dictionary held: its keys come first, then its values."""
    half = len(content) // 2
    return dict(zip(content[:half], content[half:], strict=True))


def _as_it_was(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module as they were before some of them were hidden."""
    before = {name: each.original if type(each) is UnknownAttribute else each for name, each in attributes.items()}
    return {name: each for name, each in before.items() if each is not MISSING}


def content_of(value: Any) -> Any:
    """What something that can change holds, one level deep; None for what can't change or is no model's state."""
    if isinstance(value, dict):
        if UnknownAttribute in map(type, value.values()):
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


# Classes of Python's own whose objects hold what is put into them, in attributes.
_HOLDERS = (SimpleNamespace, Namespace, ChainMap, UserDict, UserList)


def _is_of_library(kind: type) -> bool:
    """Whether a class is Python's, torch's or ours, such as a logger: its objects' memory is no state of a model."""
    package = kind.__module__.split(".")[0]
    ours = kind.__module__.startswith("fxhash.") and not kind.__module__.startswith("fxhash.zoo.")
    return package == "torch" or ours or (package in sys.stdlib_module_names and kind not in _HOLDERS)


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


def parts_of(content: Any) -> Iterator[Any]:
    """The objects among what something holds, which may change themselves."""
    if isinstance(content, (list, tuple, set)):
        for each in content:
            if type(each) in PLAIN_TYPES:
                continue
            if isinstance(each, tuple) and not hasattr(each, "_fields"):
                yield from each
            else:
                yield each


def is_same(now: Any, before: Any) -> bool:
    """Whether two contents are the same: the same objects in the same places, or equal plain values."""
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(now, (list, tuple)):
        return len(now) == len(before) and (all(map(is_, now, before)) or all(map(is_same, now, before)))
    if isinstance(now, _VALUES):
        return bool(now == before)
    if isinstance(now, np.ndarray):
        return now.dtype != object and np.array_equal(now, before, equal_nan=now.dtype.kind in "fc")
    # Sets of the same objects; compared by identity, since a value of the graph can't be compared.
    return (isinstance(now, set) and {*map(id, now)} == {*map(id, before)}) or (
        isinstance(now, bytearray) and now == before
    )
