"""Iterators that a model keeps: each step is noticed, and nothing where none was taken."""

from __future__ import annotations

import csv
import itertools
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fxhash
from fxhash.capture.iterators import position_of
from fxhash.capture.kept_state import KeptState
from fxhash.capture.references import references_from


class Step:
    def __init__(self):
        self.count = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.count += 1
        return self.count


class SlottedStep:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.count += 1
        return self.count


class OwnCount(itertools.count):
    pass


class OwnStepsOfCount(itertools.count):
    def __init__(self):
        self.own = 0

    def __next__(self):
        self.own += 1
        return self.own


class Shelf(list):
    def __next__(self):
        return self.pop()


def from_list():
    yield from [1, 1, 1]


def same_place():
    n = 0
    while True:
        n += 1
        yield None


def changes_variable_around():
    n = 0

    def numbers():
        nonlocal n
        while True:
            n += 1
            yield None

    return numbers()


def of_generator():
    for _ in same_place():
        yield None


def stepped(iterator):
    next(iterator)
    return iterator


# As are made anew for each test, with more than one step left.
ITERATORS = {
    "list": lambda: iter([1, 1, 1]),
    "reversed": lambda: reversed([1, 1, 1]),
    "tuple": lambda: iter((1, 1, 1)),
    "range": lambda: iter(range(3)),
    "string": lambda: iter("aaa"),
    "dictionary": lambda: iter({1: 1, 2: 1, 3: 1}),
    "values": lambda: iter({1: 1, 2: 1, 3: 1}.values()),
    "set": lambda: iter({1, 2, 3}),
    "zip": lambda: zip([1, 1, 1], [1, 1, 1], strict=True),
    "enumerate": lambda: enumerate([1, 1, 1]),
    "map": lambda: map(abs, [1, 1, 1]),
    "filter": lambda: filter(None, [1, 1, 1]),
    "until": lambda: iter(Step().__next__, 9),
    "tensors": lambda: iter(torch.ones(3)),
    "count": lambda: itertools.count(),
    "large count": lambda: itertools.count(2**70),
    "fractional count": lambda: itertools.count(0.5),
    "count of a class": lambda: OwnCount(),
    "count with steps of its own": lambda: OwnStepsOfCount(),
    "chain": lambda: itertools.chain([1, 1, 1], [1, 1, 1]),
    "later chain": lambda: stepped(itertools.chain([1], [1, 1, 1])),
    "slice": lambda: itertools.islice([1, 1, 1, 1], 1, 4),
    "slice of a count": lambda: itertools.islice(itertools.count(), 1, 4),
    "repeat": lambda: itertools.repeat(1, 3),
    "takewhile": lambda: itertools.takewhile(bool, [1, 1, 1]),
    "dropwhile": lambda: itertools.dropwhile(bool, [1, 0, 0, 0]),
    "filterfalse": lambda: itertools.filterfalse(bool, [0, 0, 0]),
    "starmap": lambda: itertools.starmap(abs, [(1,), (1,), (1,)]),
    "compress": lambda: itertools.compress([1, 1, 1], [1, 1, 1]),
    "zip_longest": lambda: stepped(itertools.zip_longest([1], [1, 1, 1])),
    "pairwise": lambda: itertools.pairwise([1, 1, 1, 1]),
    "groupby": lambda: itertools.groupby([1, 2, 3]),
    "generator": from_list,
    "generator with a variable": same_place,
    "generator that began": lambda: stepped(same_place()),
    "generator with a variable around it": lambda: stepped(changes_variable_around()),
    "generator of another": lambda: stepped(of_generator()),
    "generator expression": lambda: (1 for _ in range(3)),
    "object": Step,
    "object with slots": SlottedStep,
    "list that steps": lambda: Shelf([1, 1, 1]),
    "batches": lambda: iter(DataLoader([1.0, 1.0, 1.0])),
}
# Of itertools too, but their places are known by pickling alone, of which Python 3.12 warns and which 3.14 can't do.
PICKLED = {
    "accumulate": lambda: itertools.accumulate([1, 1, 1]),
    "cycle": lambda: itertools.cycle([1, 1]),
    "product": lambda: itertools.product([1, 1], repeat=2),
    "permutations": lambda: itertools.permutations([1, 1, 1], 2),
    "combinations": lambda: itertools.combinations([1, 1, 1], 2),
    "tee": lambda: itertools.tee([1, 1, 1])[0],
}


class Holder(nn.Module):
    def __init__(self, kept):
        super().__init__()
        self.kept = kept


def assert_step_is_noticed(iterator):
    module = Holder(iterator)
    state = KeptState(module)
    assert state.changed_in(module) is None
    next(iterator)
    assert state.changed_in(module) == "kept"


@pytest.mark.parametrize("make", ITERATORS.values(), ids=ITERATORS)
def test_a_step_is_noticed(make):
    assert_step_is_noticed(make())


@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support will be removed from itertools")
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="no longer known")
@pytest.mark.parametrize("make", PICKLED.values(), ids=PICKLED)
def test_a_step_is_noticed_as_long_as_it_can_be_pickled(make):
    assert_step_is_noticed(make())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="nothing warns")
@pytest.mark.parametrize("make", PICKLED.values(), ids=PICKLED)
def test_without_pickling_each_look_may_be_at_a_step(make):
    module = Holder(make())
    with warnings.catch_warnings(action="error"):
        assert KeptState(module).changed_in(module) == "kept"


def test_a_position_that_can_not_be_known_may_be_another_each_time():
    module = Holder(csv.reader(["a", "b"]))
    assert KeptState(module).changed_in(module) == "kept"


def test_the_end_of_a_generator_is_noticed():
    iterator = (each for each in [1])
    next(iterator)
    module = Holder(iterator)
    state = KeptState(module)
    assert next(iterator, None) is None
    assert state.changed_in(module) == "kept"
    assert position_of(iterator) == []


@pytest.mark.parametrize("kind", [Step, SlottedStep])
def test_a_step_of_python_code_is_taken_back(kind):
    module = Holder(kind())
    state = KeptState(module)
    next(module.kept)
    assert state.restore(module)
    assert next(module.kept) == 1


@pytest.mark.parametrize("steps", [0, 1])
def test_what_a_generator_holds_is_found(steps):
    def through(held):
        yield from [held, held]

    layer = nn.Linear(2, 2)
    generator = through(layer)
    for _ in range(steps):
        next(generator)
    assert any(reference.target is layer for reference in references_from(generator))


def test_an_iterator_that_forward_does_not_touch():
    class Idle(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.numbers = zip(range(3), Step(), strict=False)

    assert not any(node.op == "call_module" for node in fxhash.trace(Idle()).graph.nodes)
