"""Whatever a model keeps from call to call: a change of it is noticed, named, and taken back."""

from __future__ import annotations

import copy
import random
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from fxhash.capture.kept_state import KeptState


class Slotted:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


class Holder(nn.Module):
    shared: ClassVar[list[int]] = []

    def __init__(self, kept):
        super().__init__()
        self.child = nn.Linear(2, 2)
        self.kept = kept


def closure():
    count = 0

    def count_up():
        nonlocal count
        count += 1
        return count

    return count_up


# What a module keeps, and what changes it.
CHANGES = {
    "number": (0, lambda module: setattr(module, "kept", 1)),
    "new attribute": (0, lambda module: setattr(module, "other", 1)),
    "deleted attribute": (0, lambda module: delattr(module, "kept")),
    "list": ([1], lambda module: module.kept.append(2)),
    "nested list": ({"a": [[1]]}, lambda module: module.kept["a"][0].append(2)),
    "entry": ([1], lambda module: module.kept.__setitem__(0, 2)),
    "dict": ({}, lambda module: module.kept.update(a=1)),
    "ordered dict": (OrderedDict(a=1, b=2), lambda module: module.kept.move_to_end("a")),
    "defaultdict": (defaultdict(int), lambda module: module.kept["a"]),
    "counter": (Counter(), lambda module: module.kept.update("a")),
    "user dict": (UserDict(a=1), lambda module: module.kept.update(a=2)),
    "user list": (UserList([1]), lambda module: module.kept.append(2)),
    "chain map": (ChainMap({"a": 1}), lambda module: module.kept.update(a=2)),
    "set": ({1}, lambda module: module.kept.add(2)),
    "deque": (deque([1], maxlen=2), lambda module: module.kept.append(2)),
    "bytearray": (bytearray(b"a"), lambda module: module.kept.append(1)),
    "array": (np.zeros(2), lambda module: module.kept.__setitem__(0, 1)),
    "object": (SimpleNamespace(), lambda module: setattr(module.kept, "a", 1)),
    "slots": (Slotted(), lambda module: setattr(module.kept, "count", 1)),
    "random": (random.Random(0), lambda module: module.kept.random()),
    "numpy generator": (np.random.default_rng(0), lambda module: module.kept.random()),
    "numpy state": (np.random.RandomState(0), lambda module: module.kept.rand()),
    "closure": (closure(), lambda module: module.kept()),
    "tensor": (torch.zeros(2), lambda module: module.kept.add_(1)),
    "buffer": (0, lambda module: module.register_buffer("b", torch.zeros(1))),
    "layer": (0, lambda module: setattr(module, "child", nn.Linear(2, 2))),
    "hook": (0, lambda module: module.register_forward_hook(lambda *_: None)),
    "rate of a child": (0, lambda module: setattr(module.child, "in_features", 3)),
}
CANT_BE_TAKEN_BACK = {"tensor"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed_and_taken_back(name):
    kept, change = CHANGES[name]
    module = Holder(copy.deepcopy(kept))
    state = KeptState(module)
    assert state.changed_in(module) is None
    change(module)
    assert state.changed_in(module) is not None
    assert state.restore(module) is (name not in CANT_BE_TAKEN_BACK)
    assert (state.changed_in(module) is None) is (name not in CANT_BE_TAKEN_BACK)


def test_the_change_is_named():
    module = Holder([1])
    state = KeptState(module)
    module.kept.append(2)
    assert state.changed_in(module) == "kept"
    module.kept.pop()
    module.register_buffer("average", torch.zeros(1))
    assert state.changed_in(module) == "average"


def test_a_change_of_the_class_lies_around():
    module = Holder(0)
    state = KeptState(module)
    try:
        Holder.shared.append(1)
        assert state.changed_in(module) is None
        assert state.changed_around() is not None
        assert state.restore(module)
        assert Holder.shared == []
    finally:
        Holder.shared.clear()


def test_reading_changes_nothing():
    module = Holder({"a": [1], "b": {2}})
    state = KeptState(module)
    assert module.kept["a"][0] == 1
    assert state.changed_in(module) is None
    assert state.changed_around() is None
