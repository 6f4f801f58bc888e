"""State that is no tensor, or is kept where a trace doesn't look; random numbers of one's own."""

# ruff: noqa: B006
from __future__ import annotations

import functools
import heapq
import itertools
import random
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from tests.odd.registry import Call, Inputs, Two, call, odd


@odd()
class CountsInList(Two):
    def __init__(self):
        super().__init__()
        self.n = [0]

    def forward(self, x):
        self.n[0] += 1
        return self.a(x) * self.n[0]


@odd()
class CountsInDict(Two):
    def __init__(self):
        super().__init__()
        self.n = {"calls": 0}

    def forward(self, x):
        self.n["calls"] += 1
        return self.a(x) * self.n["calls"]


@odd()
class CountsInNestedDict(Two):
    def __init__(self):
        super().__init__()
        self.n = {"calls": [0, {"n": 0}]}

    def forward(self, x):
        self.n["calls"][1]["n"] += 1
        return self.a(x) * self.n["calls"][1]["n"]


@odd()
class GrowsSet(Two):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, x):
        self.seen.add(len(self.seen))
        return self.a(x) * len(self.seen)


@odd()
class TurnsDeque(Two):
    def __init__(self):
        super().__init__()
        self.factors = deque([2.0, 3.0, 5.0])

    def forward(self, x):
        self.factors.rotate(1)
        return self.a(x) * self.factors[0]


@odd()
class CountsInCounter(Two):
    def __init__(self):
        super().__init__()
        self.n = Counter()

    def forward(self, x):
        self.n["calls"] += 1
        return self.a(x) * self.n["calls"]


@odd()
class CountsInDefaultDict(Two):
    def __init__(self):
        super().__init__()
        self.n = defaultdict(int)

    def forward(self, x):
        self.n["calls"] += 1
        return self.a(x) * self.n["calls"]


@odd()
class MovesToEnd(Two):
    def __init__(self):
        super().__init__()
        self.order = OrderedDict([("p", 2.0), ("q", 3.0)])

    def forward(self, x):
        first = next(iter(self.order))
        self.order.move_to_end(first)
        return self.a(x) * self.order[first]


@odd()
class PopsFromList(Two):
    def __init__(self):
        super().__init__()
        self.factors = [2.0, 3.0, 5.0] * 10

    def forward(self, x):
        return self.a(x) * self.factors.pop()


@odd()
class PushesOnHeap(Two):
    def __init__(self):
        super().__init__()
        self.heap = [1.0]

    def forward(self, x):
        smallest = heapq.heappop(self.heap)
        heapq.heappush(self.heap, smallest + 1)
        return self.a(x) * smallest


@odd()
class IteratesCount(Two):
    def __init__(self):
        super().__init__()
        self.counter = itertools.count(1)

    def forward(self, x):
        return self.a(x) * next(self.counter)


@odd()
class IteratesCycle(Two):
    def __init__(self):
        super().__init__()
        self.factors = itertools.cycle([2.0, 3.0])

    def forward(self, x):
        return self.a(x) * next(self.factors)


@odd()
class IteratesList(Two):
    def __init__(self):
        super().__init__()
        self.factors = iter([2.0, 3.0, 5.0] * 10)

    def forward(self, x):
        return self.a(x) * next(self.factors)


class _Box:
    def __init__(self) -> None:
        self.n = 0


class _SlottedBox:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


@odd()
class CountsInObject(Two):
    def __init__(self):
        super().__init__()
        self.box = _Box()

    def forward(self, x):
        self.box.n += 1
        return self.a(x) * self.box.n


@odd()
class CountsInSlots(Two):
    def __init__(self):
        super().__init__()
        self.box = _SlottedBox()

    def forward(self, x):
        self.box.n += 1
        return self.a(x) * self.box.n


@odd()
class CountsInNamespace(Two):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(inner=SimpleNamespace(n=0))

    def forward(self, x):
        self.config.inner.n += 1
        return self.a(x) * self.config.inner.n


class ReplacesItsBuffer(nn.Module):
    """Is called as a whole, as its state changes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, x):
        y = self.linear(x)
        self.seen = self.seen + y.detach().mean(0)
        return y


@odd()
class ReadsABufferThatAPartReplaced(Two):
    def __init__(self):
        super().__init__()
        self.part = ReplacesItsBuffer()

    def forward(self, x):
        y = self.part(x)
        return self.a(y) + self.part.seen


@odd()
class ReadsABufferThatAPartWillReplace(ReadsABufferThatAPartReplaced):
    def forward(self, x):
        return self.a(x) + self.part.seen + self.part(x)


@odd()
class CountsInArray(Two):
    def __init__(self):
        super().__init__()
        self.n = np.zeros(1)

    def forward(self, x):
        self.n += 1
        return self.a(x) * float(self.n[0])


@odd()
class CountsInByteArray(Two):
    def __init__(self):
        super().__init__()
        self.n = bytearray(1)

    def forward(self, x):
        self.n[0] += 1
        return self.a(x) * self.n[0]


@odd()
class CountsInThreadLocal(Two):
    """Can't be copied: an error is what is left."""

    def __init__(self):
        super().__init__()
        self.local = threading.local()
        self.local.n = 0

    def forward(self, x):
        self.local.n += 1
        return self.a(x) * self.local.n


@odd()
class CountsInAttribute(Two):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        return self.a(x) * self.n


@odd()
class CountsByVars(Two):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        vars(self)["n"] = self.n + 1
        return self.a(x) * self.n


@odd()
class CountsBackToStart(Two):
    """The attribute is, after the call, what it was before: no comparison of before and after shows it."""

    def __init__(self):
        super().__init__()
        self.phase = 0

    def forward(self, x):
        self.phase = (self.phase + 1) % 3
        h = self.a(x) * (self.phase + 1)
        if self.phase == 2:
            self.phase = 0
        return h


@odd()
class AddsAttributeAtFirstCall(Two):
    def forward(self, x):
        if not hasattr(self, "scale"):
            self.scale = 2.0
            return self.a(x)
        return self.a(x) * self.scale


@odd()
class DeletesAttributeAtFirstCall(Two):
    def __init__(self):
        super().__init__()
        self.first = True

    def forward(self, x):
        if "first" in vars(self):
            del self.first
            return self.a(x)
        return self.b(x)


@odd()
class ReplacesTuple(Two):
    def __init__(self):
        super().__init__()
        self.history = ()

    def forward(self, x):
        self.history = (*self.history, 1)
        return self.a(x) * len(self.history)


@odd()
class FlipsFlag(Two):
    def __init__(self):
        super().__init__()
        self.first = True

    def forward(self, x):
        layer = self.a if self.first else self.b
        self.first = not self.first
        return layer(x)


@odd()
class FlagIsNoneAtFirst(Two):
    def __init__(self):
        super().__init__()
        self.scale = None

    def forward(self, x):
        if self.scale is None:
            self.scale = 2.0
            return self.a(x)
        return self.a(x) * self.scale


@odd()
class RecurrentState(Two):
    def __init__(self):
        super().__init__()
        self.h = None

    def forward(self, x):
        if self.h is None:
            self.h = torch.zeros_like(x)
        new = torch.tanh(self.a(x) + self.b(self.h))
        self.h = new
        return new


@odd()
class RecurrentStateDetached(Two):
    def __init__(self):
        super().__init__()
        self.h = torch.zeros(4, 16)

    def forward(self, x):
        self.h = torch.tanh(self.a(x) + self.b(self.h)).detach()
        return self.h


@odd()
class RecurrentStateInDict(Two):
    def __init__(self):
        super().__init__()
        self.state = {}

    def forward(self, x):
        h = self.state.get("h")
        new = self.a(x) if h is None else torch.tanh(self.a(x) + self.b(h))
        self.state["h"] = new
        return new


@odd()
class RecurrentStateInList(Two):
    def __init__(self):
        super().__init__()
        self.past = []

    def forward(self, x):
        self.past.append(self.a(x))
        return self.b(torch.stack(self.past).mean(0))


@odd()
class StateInBuffer(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("h", torch.zeros(16))

    def forward(self, x):
        self.h = self.h * 0.5 + x.detach().mean(0)
        return self.a(x + self.h)


@odd()
class StateInBufferOnceSeen(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("h", None)

    def forward(self, x):
        if self.h is None:
            self.h = x.detach().mean(0)
        return self.a(x + self.h)


@odd()
class StateInUnsavedBuffer(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("h", torch.zeros(16), persistent=False)

    def forward(self, x):
        self.h.add_(1)
        return self.a(x + self.h)


@odd()
class StateInPlainTensor(Two):
    def __init__(self):
        super().__init__()
        self.h = torch.zeros(16)

    def forward(self, x):
        self.h += 1
        return self.a(x + self.h)


@odd()
class StateInListedTensor(Two):
    def __init__(self):
        super().__init__()
        self.h = [torch.zeros(16)]

    def forward(self, x):
        self.h[0].add_(1)
        return self.a(x + self.h[0])


@odd()
class StateInDataOfTensor(Two):
    """A version counter doesn't count what is done to `.data`."""

    def __init__(self):
        super().__init__()
        self.register_buffer("h", torch.zeros(16))

    def forward(self, x):
        self.h.data.add_(1)
        return self.a(x + self.h)


@odd()
class CountsInBuffer(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n += 1
        return self.a(x) * self.n


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        return x * self.n


@odd()
class StateOfLeaf(Two):
    def __init__(self):
        super().__init__()
        self.counting = _Counting()

    def forward(self, x):
        return self.a(self.counting(x))


@odd()
class StateOfLeafReadByParent(Two):
    def __init__(self):
        super().__init__()
        self.counting = _Counting()

    def forward(self, x):
        return self.a(self.counting(x)) * (1 + self.counting.n)


@odd()
class StateOfLeafChangedByParent(Two):
    def __init__(self):
        super().__init__()
        self.counting = _Counting()

    def forward(self, x):
        self.counting.n = 5
        return self.a(self.counting(x))


@odd()
class StateOfChildChangedByParent(Two):
    def __init__(self):
        super().__init__()
        self.child = CountsInList()

    def forward(self, x):
        self.child.n[0] += 10
        return self.child(self.b(x))


class _CountsInParent(nn.Module):
    def __init__(self, counts: list[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.counts = counts

    def forward(self, x):
        self.counts.append(1)
        return self.linear(x)


@odd()
class ListSharedWithChild(Two):
    def __init__(self):
        super().__init__()
        self.counts = []
        self.child = _CountsInParent(self.counts)

    def forward(self, x):
        return self.child(self.a(x)) * len(self.counts)


@odd()
class ListSharedByChildren(nn.Module):
    def __init__(self):
        super().__init__()
        counts = []
        self.first, self.second = _CountsInParent(counts), _CountsInParent(counts)

    def forward(self, x):
        return self.second(self.first(x)) * len(self.second.counts)


HISTORY: list[int] = []
TABLE: dict[str, int] = {"n": 0}
COUNT = 0


@odd(reset=HISTORY.clear, outside=lambda: list(HISTORY))
class GrowsGlobalList(Two):
    def forward(self, x):
        HISTORY.append(1)
        return self.a(x) * len(HISTORY)


@odd(reset=lambda: TABLE.update(n=0), outside=lambda: dict(TABLE))
class CountsInGlobalDict(Two):
    def forward(self, x):
        TABLE["n"] += 1
        return self.a(x) * TABLE["n"]


def _reset_count() -> None:
    global COUNT
    COUNT = 0


@odd(reset=_reset_count, outside=lambda: COUNT)
class CountsInGlobal(Two):
    def forward(self, x):
        global COUNT
        COUNT += 1
        return self.a(x) * COUNT


@odd(reset=_reset_count, outside=lambda: COUNT)
class CountsInGlobalOfHelper(Two):
    def forward(self, x):
        return self.a(x) * _count_up()


def _count_up() -> int:
    global COUNT
    COUNT += 1
    return COUNT


def _helper(x):
    _helper.calls += 1
    return x * _helper.calls


_helper.calls = 0


@odd(reset=lambda: vars(_helper).update(calls=0), outside=lambda: _helper.calls)
class CountsInFunction(Two):
    def forward(self, x):
        return _helper(self.a(x))


class _Holder:
    calls = 0


@odd(reset=lambda: setattr(_Holder, "calls", 0), outside=lambda: _Holder.calls)
class CountsInOtherClass(Two):
    def forward(self, x):
        _Holder.calls += 1
        return self.a(x) * _Holder.calls


@odd(reset=lambda: setattr(CountsInOwnClass, "calls", 0), outside=lambda: CountsInOwnClass.calls)
class CountsInOwnClass(Two):
    calls = 0

    def forward(self, x):
        CountsInOwnClass.calls += 1
        return self.a(x) * self.calls


@odd(reset=lambda: CountsInListOfClass.counts.clear(), outside=lambda: list(CountsInListOfClass.counts))
class CountsInListOfClass(Two):
    counts: list[int] = []  # noqa: RUF012

    def forward(self, x):
        self.counts.append(1)
        return self.a(x) * len(self.counts)


def _clear_default() -> None:
    MutableDefault.forward.__defaults__[0].clear()


@odd(reset=_clear_default, outside=lambda: list(MutableDefault.forward.__defaults__[0]))
class MutableDefault(Two):
    def forward(self, x, seen=[]):
        seen.append(1)
        return self.a(x) * len(seen)


@odd(reset=lambda: MutableDefaultOfHelper.factor.__defaults__[0].clear())
class MutableDefaultOfHelper(Two):
    def factor(self, seen=[]):
        seen.append(1)
        return len(seen)

    def forward(self, x):
        return self.a(x) * self.factor()


def _counter():
    n = 0

    def count_up():
        nonlocal n
        n += 1
        return n

    return count_up


@odd()
class CountsInClosure(Two):
    def __init__(self):
        super().__init__()
        self.count_up = _counter()

    def forward(self, x):
        return self.a(x) * self.count_up()


@odd()
class CountsInGenerator(Two):
    """Generators can't be copied: an error is what is left."""

    def __init__(self):
        super().__init__()
        self.factors = (float(n) for n in range(1, 100))

    def forward(self, x):
        return self.a(x) * next(self.factors)


def _all_factors():
    n = 0.0
    while True:
        n += 1
        yield n


class _SlottedFactors:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0.0

    def __iter__(self):
        return self

    def __next__(self) -> float:
        self.n += 1
        return self.n


class _CountsFromTwo(itertools.count):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.n = 1.0

    def __next__(self) -> float:
        self.n += 1
        return self.n


FACTORS = FACTORS_OF_RANGE = FACTORS_IN_TURN = PAIRS = _all_factors()


def _reset_factors() -> None:
    global FACTORS, FACTORS_OF_RANGE, FACTORS_IN_TURN, PAIRS
    FACTORS = _all_factors()
    FACTORS_OF_RANGE = (float(n) for n in range(1, 100))
    FACTORS_IN_TURN = itertools.cycle([2.0, 3.0])
    PAIRS = itertools.product([2.0, 3.0, 5.0, 7.0, 11.0], repeat=2)


@odd(reset=_reset_factors)
class StepsGlobalGenerator(Two):
    def forward(self, x):
        return self.a(x) * next(FACTORS)


@odd(reset=_reset_factors)
class StepsGlobalGeneratorExpression(Two):
    def forward(self, x):
        return self.a(x) * next(FACTORS_OF_RANGE)


@odd(reset=_reset_factors)
class StepsGlobalCycle(Two):
    def forward(self, x):
        return self.a(x) * next(FACTORS_IN_TURN)


@odd(reset=_reset_factors)
class StepsGlobalProduct(Two):
    def forward(self, x):
        first, second = next(PAIRS)
        return self.a(x) * first + second


@odd()
class StepsSlottedIterator(Two):
    def __init__(self):
        super().__init__()
        self.factors = _SlottedFactors()

    def forward(self, x):
        return self.a(x) * next(self.factors)


@odd()
class StepsSubclassOfCount(Two):
    def __init__(self):
        super().__init__()
        self.factors = _CountsFromTwo()

    def forward(self, x):
        return self.a(x) * next(self.factors)


CALLED: list[int] = []


@functools.lru_cache
def _cached_factor(n: int) -> int:
    CALLED.append(n)
    return len(CALLED)


def _forget_factors() -> None:
    _cached_factor.cache_clear()
    CALLED.clear()


@odd(lambda t: [call(t(), 2), call(t(), 3), call(t(), 2)], reset=_forget_factors, outside=lambda: list(CALLED))
class CachedByArgument(Two):
    def forward(self, x, n):
        return self.a(x) * _cached_factor(n)


@odd(reset=_forget_factors, outside=lambda: list(CALLED))
class CachedFactor(Two):
    def forward(self, x):
        return self.a(x) * _cached_factor(1) + _cached_factor(2)


def _lengths(t: Inputs) -> list[Call]:
    return [call(t(4, 16)), call(t(2, 16)), call(t(4, 16)), call(t(3, 16))]


@odd(_lengths)
class CachesByShape(Two):
    def __init__(self):
        super().__init__()
        self.cache = {}

    def forward(self, x):
        key = x.shape[0]
        if key not in self.cache:
            self.cache[key] = torch.full((16,), float(len(self.cache)))
        return self.a(x + self.cache[key])


@odd()
class CachesFirstOutput(Two):
    def __init__(self):
        super().__init__()
        self.cache = {}

    def forward(self, x):
        return self.b(self.cache.setdefault("first", self.a(x)) + x)


@odd()
class CachedProperty(Two):
    @functools.cached_property
    def factor(self):
        return float(torch.rand(()))

    def forward(self, x):
        return self.a(x) * self.factor


@odd()
class KeepsPythonRandom(Two):
    def __init__(self):
        super().__init__()
        self.random = random.Random(5)

    def forward(self, x):
        return self.a(x) * self.random.random()


@odd()
class KeepsNumpyGenerator(Two):
    def __init__(self):
        super().__init__()
        self.random = np.random.default_rng(5)

    def forward(self, x):
        return self.a(x) * float(self.random.random())


@odd()
class KeepsNumpyState(Two):
    def __init__(self):
        super().__init__()
        self.random = np.random.RandomState(5)

    def forward(self, x):
        return self.a(x) * float(self.random.rand())


@odd()
class KeepsTorchGenerator(Two):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x):
        return self.a(x) * torch.rand((), generator=self.generator)


@odd()
class KeepsTorchGeneratorForMask(Two):
    def __init__(self):
        super().__init__()
        self.generators = {"mask": torch.Generator().manual_seed(5)}

    def forward(self, x):
        mask = torch.empty(4, 16).bernoulli_(0.5, generator=self.generators["mask"])
        return self.a(x * mask)


GENERATOR = torch.Generator()


@odd(reset=lambda: GENERATOR.manual_seed(5), outside=lambda: GENERATOR.get_state().tolist())
class UsesGlobalGenerator(Two):
    def forward(self, x):
        return self.a(x) * torch.rand((), generator=GENERATOR)


RANDOM = random.Random()


@odd(reset=lambda: RANDOM.seed(5), outside=RANDOM.getstate)
class UsesGlobalRandom(Two):
    def forward(self, x):
        return self.a(x) if RANDOM.random() < 0.5 else self.b(x)


@odd()
class DrawsFromPython(Two):
    def forward(self, x):
        return self.a(x) * random.random()


@odd()
class DrawsFromNumpy(Two):
    def forward(self, x):
        return self.a(x) * float(np.random.rand())


@odd()
class DrawsFromTorch(Two):
    def forward(self, x):
        return self.a(x) + torch.randn(4, 16)


@odd()
class DrawsLikeInput(Two):
    def forward(self, x):
        return self.a(x) + torch.randn_like(x)


@odd()
class DrawsInPlace(Two):
    def forward(self, x):
        return self.a(x) + torch.empty_like(x).uniform_()


@odd()
class DropsLayersAtRandom(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            if not self.training or random.random() < 0.5:
                x = layer(x)
        return x


@odd()
class SeedsInForward(Two):
    def forward(self, x):
        torch.manual_seed(3)
        return self.a(x) + torch.rand_like(x)


@odd()
class ForksRandomState(Two):
    def forward(self, x):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            noise = torch.rand_like(x)
        return self.a(x) + noise + torch.rand_like(x)


@odd()
class CountsWithLock(Two):
    """Locks can't be copied: an error is what is left."""

    def __init__(self):
        super().__init__()
        self.lock, self.n = threading.Lock(), 0

    def forward(self, x):
        with self.lock:
            self.n += 1
        return self.a(x) * self.n


@odd()
class SwapsLayers(Two):
    def forward(self, x):
        self.a, self.b = self.b, self.a
        return self.a(x)


@odd()
class AddsLayerNames(Two):
    """A list that is only read."""

    def __init__(self):
        super().__init__()
        self.names = ["a", "b"]

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


@odd()
class SchedulesScale(Two):
    def __init__(self):
        super().__init__()
        self.step = 0
        self.schedule = [1.0, 0.5, 0.25]

    def forward(self, x):
        scale = self.schedule[min(self.step, 2)]
        if self.training:
            self.step += 1
        return self.a(x) * scale
