"""What a model keeps from call to call, however it keeps it: a traced forward must not change it.

Attributes, containers, plain objects, variables of functions and modules, random number generators of Python and
numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter, is_
from types import CodeType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fxhash.capture.held import PLAIN_TYPES, Held, content_of, entries, is_same, parts_of
from fxhash.capture.real_tensors import storage_of
from fxhash.capture.references import globals_in

_version = attrgetter("_version")


class _Group:
    """What is compared together, each with the name to report.

    Dictionaries and versions of tensors, of which most models keep hundreds, are compared all at once.
    """

    def __init__(self, found: Iterable[tuple[str, Held]] = ()) -> None:
        self._found = list(found)
        dictionaries = [kept for _, kept in self._found if isinstance(kept.holder, dict)]
        tensors = [kept for _, kept in self._found if isinstance(kept.holder, Tensor)]
        self._others = [each for each in self._found if not isinstance(each[1].holder, (dict, Tensor))]
        self._tensors = [kept.holder for kept in tensors]
        self._versions = [kept.content for kept in tensors]
        self._dictionaries = [kept.holder for kept in dictionaries]
        contents = [entries(kept.content) for kept in dictionaries]
        self._sizes = list(map(len, contents))
        self._keys = list(chain.from_iterable(contents))
        self._values = list(chain.from_iterable(map(dict.values, contents)))

    @classmethod
    def joined(cls, groups: Iterable[_Group]) -> _Group:
        """All that several groups compare."""
        result = cls()
        for group in groups:
            for name, values in vars(group).items():
                vars(result)[name].extend(values)
        return result

    def first_changed(self) -> str | None:
        """The name of something that changed; None if nothing did."""
        same_sizes = list(map(len, self._dictionaries)) == self._sizes
        keys = chain.from_iterable(self._dictionaries)
        values = chain.from_iterable(map(dict.values, self._dictionaries))
        same = same_sizes and all(map(is_, keys, self._keys)) and all(map(is_, values, self._values))
        same = same and list(map(_version, self._tensors)) == self._versions
        return _first_changed(self._others if same else self._found)


class KeptState:
    """The state of a model as it was before a trace.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept: dict[int, Held] = {}
        self._of_module: dict[int, list[tuple[str, Held]]] = {}
        self._own: dict[int, _Group] = {}
        self._of_subtree: dict[int, _Group] = {}
        # Of functions, classes and variables outside of the model.
        self._around: list[tuple[str, Held]] = []
        self._codes: set[int] = set()
        self._modules = {id(module): module for module in model.modules()}
        self.storages: set[int] = set()
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self._remember_module(module)

    def _remember_module(self, module: nn.Module) -> None:
        found = self._of_module[id(module)] = []
        for name, value in vars(module).items():
            if type(value) not in PLAIN_TYPES:
                label = "" if name in ("_parameters", "_buffers", "_modules") else name
                found += [(label, kept) for kept in self._remember(value)]
        # The dictionary of a module changes where a name in it gets another value.
        found += [("", kept) for kept in self._remember(vars(module))]
        self._own[id(module)] = _Group(found)
        for kind in type(module).__mro__:
            if kind.__module__.startswith("torch."):
                break
            self._around.extend((kind.__name__, kept) for kept in self._remember(kind))

    def remember_around(self, code: CodeType, variables: dict[str, Any]) -> None:
        """Remember the variables outside of a function that its code names."""
        if id(code) not in self._codes:
            self._codes.add(id(code))
            for name in globals_in(code):
                if name in variables:
                    self._around.extend((name, kept) for kept in self._remember(variables[name]))

    def changed_in(self, module: nn.Module) -> str | None:
        """The name of something that changed in a module, or in one nested in it; None if nothing did."""
        key = id(module)
        if key not in self._of_subtree:
            nested = [self._own[id(each)] for each in module.modules() if id(each) in self._own]
            self._of_subtree[key] = _Group.joined(nested)
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

    def _remember(self, value: Any) -> Iterator[Held]:
        pending = [value]
        while pending:
            each = pending.pop()
            if type(each) in PLAIN_TYPES or id(each) in self._kept or id(each) in self._modules:
                continue
            if isinstance(each, Tensor):
                storage = storage_of(each)
                if storage is not None:
                    self.storages.add(storage)
            content = content_of(each)
            if content is None:
                continue
            kept = self._kept[id(each)] = Held(each, content)
            if not isinstance(each, (tuple, MethodType)):
                yield kept
            pending.extend(parts_of(content))


def _first_changed(found: Iterable[tuple[str, Held]]) -> str | None:
    for name, kept in found:
        if not kept.is_unchanged():
            return name or _changed_key(kept)
    return None


def _changed_key(kept: Held) -> str:
    """Which entry of a dictionary changed."""
    before, now = entries(kept.content), entries(content_of(kept.holder))
    for name in (*before, *now):
        if name not in before or name not in now or not is_same(before[name], now[name]):
            return str(name)
    return "the order of its attributes"
