"""Questions whether a value is None, or which object, type or member it is."""

# ruff: noqa: E711
from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.odd.registry import Inputs, Two, call, given_or_none, odd, optional


@odd(optional)
class NoneChoosesConstant(Two):
    def forward(self, x, m=None):
        return self.a(x) * (1.0 if m is None else 2.0)


@odd(optional)
class NoneChoosesLayer(Two):
    def forward(self, x, m=None):
        return (self.a if m is None else self.b)(x)


@odd(optional)
class NoneChoosesOperation(Two):
    def forward(self, x, m=None):
        if m is not None:
            x = x + m
        return self.a(x)


@odd(lambda t: [call(t()), call(t(), p=t()), call(t(), q=t()), call(t(), t(), t())])
class TwoNonesCompared(Two):
    def forward(self, x, p=None, q=None):
        return self.a(x) * (2.0 if (p is None) != (q is None) else 3.0)


@odd(lambda t: [call(t()), call(t(), m=t()), call(t(), m=None)])
class KeywordsGetIsNone(Two):
    def forward(self, x, **kw):
        return self.a(x) * (2.0 if kw.get("m") is None else 3.0)


@odd(lambda t: [call(t()), call(t(), m=t()), call(t())])
class NameInKeywords(Two):
    def forward(self, x, **kw):
        return self.a(x) * (2.0 if "m" in kw else 3.0)


@odd(lambda t: [call(t()), call(t(), m=t()), call(t())])
class KeywordOnlyIsNone(Two):
    def forward(self, x, *, m=None):
        return self.a(x) * (2.0 if m is None else 3.0)


@odd(lambda t: [call(t()), call(t(), t()), call(t(), t(), t())])
class CountsArguments(Two):
    def forward(self, x, *more):
        return self.a(x) * (1 + len(more))


@odd(lambda t: [call(t(), True), call(t(), False), call(t())])
class FlagIsTrue(Two):
    def forward(self, x, flag=False):
        return self.a(x) * (2.0 if flag is True else 3.0)


@odd(lambda t: [call(t(), True), call(t(), False), call(t(), True)])
class FlagWithoutDefaultIsTrue(Two):
    def forward(self, x, flag):
        return self.a(x) * (2.0 if flag is True else 3.0)


@odd(lambda t: [call(t(), True), call(t(), False), call(t(), True)])
class FlagInIf(Two):
    def forward(self, x, flag):
        return self.a(x) if flag else self.b(x)


@odd(lambda t: [call(t(), "sum"), call(t(), "mean"), call(t())])
class StringCompared(Two):
    def forward(self, x, how="mean"):
        return self.a(x) * (2.0 if how == "sum" else 3.0)


@odd(lambda t: [call(t(), "sum"), call(t(), None), call(t(), "other")])
class ArgumentInList(Two):
    def forward(self, x, how):
        return self.a(x) * (2.0 if how in [None, "sum"] else 3.0)


@odd(lambda t: [call(t(), "sum"), call(t(), None), call(t(), "other")])
class ArgumentInSet(Two):
    def forward(self, x, how):
        return self.a(x) * (2.0 if how in {None, "sum"} else 3.0)


@odd(lambda t: [call(t(), 1), call(t(), 3), call(t(), 0)])
class NumberOfRepeats(Two):
    def forward(self, x, times):
        for _ in range(times):
            x = self.a(x)
        return x


@odd(lambda t: [call(t()), call(t(), 5.0), call(t(), 0.0)])
class NumberOrDefault(Two):
    def forward(self, x, scale=None):
        return self.a(x) * (scale or 2.0)


@odd(given_or_none)
class RequiredMayBeNone(Two):
    def forward(self, x, m):
        return self.a(x) * (2.0 if m is None else 3.0)


@odd(given_or_none)
class RequiredMayBeNoneAndIsAdded(Two):
    def forward(self, x, m):
        h = self.a(x)
        if m is not None:
            h = h + m
        return h


def _batches(t: Inputs) -> list[Any]:
    return [call({"x": t(), "m": t()}), call({"x": t(), "m": None}), call({"x": t()})]


@odd(_batches)
class NoneInDictEntry(Two):
    def forward(self, batch):
        return self.a(batch["x"]) * (2.0 if batch.get("m") is None else 3.0)


@odd(lambda t: [call({"x": t(), "m": t()}), call({"x": t(), "m": None})])
class NoneInDictItem(Two):
    def forward(self, batch):
        return self.a(batch["x"]) * (2.0 if batch["m"] is None else 3.0)


@odd(_batches)
class KeyInDict(Two):
    def forward(self, batch):
        return self.a(batch["x"]) * (2.0 if "m" in batch else 3.0)


@odd(lambda t: [call((t(), t())), call((t(), None)), call((t(), t()))])
class NoneInTuple(Two):
    def forward(self, pair):
        x, m = pair[0], pair[1]
        return self.a(x) * (2.0 if m is None else 3.0)


@odd(lambda t: [call(t()), call((t(), t())), call([t(), t(), t()])])
class TensorOrTuple(Two):
    def forward(self, x):
        values = x if isinstance(x, (tuple, list)) else [x]
        return sum(self.a(value) for value in values)


class _NothingInEval(nn.Module):
    def forward(self, x):
        return x if self.training else None


class _NothingIfNegative(nn.Module):
    def forward(self, x):
        return x if float(x.mean()) > 0 else None


@odd()
class ResultOfLeafIsNone(Two):
    def __init__(self):
        super().__init__()
        self.maybe = _NothingIfNegative()

    def forward(self, x):
        return self.a(x) * (2.0 if self.maybe(x) is None else 3.0)


@odd()
class ResultOfLeafIsNoneInEval(Two):
    def __init__(self):
        super().__init__()
        self.maybe = _NothingInEval()

    def forward(self, x):
        h = self.a(x)
        extra = self.maybe(h)
        return self.b(h) if extra is None else self.b(h) + extra


@odd()
class ResultsOfLeavesChained(Two):
    def __init__(self):
        super().__init__()
        self.maybe, self.other = _NothingIfNegative(), _NothingInEval()

    def forward(self, x):
        first, second = self.maybe(x), self.other(x)
        return self.a(x) * (2.0 if first is second is None else 3.0)


class _OpaqueMaybe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        if float(x.mean()) > 0:
            return self.linear(x), None
        return self.linear(x), x


@odd()
class ResultOfOpaqueIsNone(Two):
    def __init__(self):
        super().__init__()
        self.block = _OpaqueMaybe()

    def forward(self, x):
        h, extra = self.block(x)
        return self.b(h) * (2.0 if extra is None else 3.0)


@odd()
class ResultOfOpaqueIndexed(Two):
    def __init__(self):
        super().__init__()
        self.block = _OpaqueMaybe()

    def forward(self, x):
        result = self.block(x)
        return self.b(result[0]) * (2.0 if result[1] is None else 3.0)


@odd()
class WeightsOfAttentionAreNone(Two):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = x[None]
        h, weights = self.attention(x, x, x, need_weights=False)
        return self.b(h) * (2.0 if weights is None else 3.0)


@odd(optional)
class NoneInComprehension(Two):
    def forward(self, x, m=None):
        return sum(self.a(value) for value in (x, m) if value is not None)


@odd(optional)
class NoneInAny(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if any(value is None for value in (x, m)) else 3.0)


@odd(optional)
class NoneInMatch(Two):
    def forward(self, x, m=None):
        match m:
            case None:
                return self.a(x)
            case _:
                return self.b(x)


@odd(optional)
class TensorInMatch(Two):
    def forward(self, x, m=None):
        match m:
            case Tensor():
                return self.a(x)
            case _:
                return self.b(x)


@odd(optional)
class NoneByWalrus(Two):
    def forward(self, x, m=None):
        if (value := m) is None:
            return self.a(x)
        return self.b(value)


@odd(optional)
class NoneByEquality(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if m == None else 3.0)


def _is_missing(value: Any) -> bool:
    return value is None


@odd(optional)
class NoneInHelper(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if _is_missing(m) else 3.0)


@odd(optional)
class NoneInChild(Two):
    def __init__(self):
        super().__init__()
        self.child = NoneChoosesConstant()

    def forward(self, x, m=None):
        return self.child(self.a(x), m)


@odd(optional)
class NoneByOperator(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if operator.is_(m, None) else 3.0)


@odd(optional)
class NoneById(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if id(m) == id(None) else 3.0)


@odd(optional)
class NoneByTypeName(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if type(m).__name__ == "NoneType" else 3.0)


@odd(optional)
class IsInstanceOfTensor(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if isinstance(m, Tensor) else 3.0)


@odd(optional)
class IsTensorFunction(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if torch.is_tensor(m) else 3.0)


@odd(optional)
class TypeIsTensor(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if type(m) is Tensor else 3.0)


@odd()
class TypeOfValueIsTensor(Two):
    def forward(self, x):
        h = self.a(x)
        return h * (2.0 if type(h) is Tensor else 3.0)


@odd()
class IsInstanceOfValue(Two):
    def forward(self, x):
        h = self.a(x)
        return h * (2.0 if isinstance(h, Tensor) else 3.0)


@odd(optional)
class HasAttributeOfArgument(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if hasattr(m, "shape") else 3.0)


@odd()
class HasUnknownAttribute(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if hasattr(x, "no_such_thing") else 3.0)


@odd()
class GetsUnknownAttribute(Two):
    def forward(self, x):
        return self.a(x) * (getattr(x, "no_such_thing", None) or 3.0)


@odd(optional)
class NoneByAttributeError(Two):
    def forward(self, x, m=None):
        try:
            m.shape  # noqa: B018
        except AttributeError:
            return self.a(x)
        return self.b(x)


@odd(optional)
class ArgumentIsCallable(Two):
    def forward(self, x, m=None):
        return self.a(x) * (2.0 if callable(m) else 3.0)


@odd(lambda t: [call(t(), torch.tanh), call(t(), torch.relu)])
class FunctionAsArgument(Two):
    def forward(self, x, activation):
        return self.b(activation(self.a(x))) * (2.0 if activation is torch.tanh else 3.0)


@odd(lambda t: [call(t()), call(t().double()), call(t())])
class LookupByDtype(Two):
    def forward(self, x):
        factor = {torch.float32: 2.0, torch.float64: 3.0}[x.dtype]
        return self.a(x.float()) * factor


@odd(lambda t: [call(t()), call(t().double()), call(t())])
class DtypeCompared(Two):
    def forward(self, x):
        return self.a(x.float()) * (2.0 if x.dtype is torch.float32 else 3.0)


@odd(optional)
class LookupByInput(Two):
    def forward(self, x, m=None):
        return self.a(x) * {None: 2.0}.get(m, 3.0)


@odd(lambda t: [call(x := t(), x), call(t(), t()), call(x, x)])
class InputsAreOneObject(Two):
    def forward(self, x, y):
        return self.a(x) * (2.0 if x is y else 3.0)


@odd(lambda t: [call(x := t(), [x]), call(t(), [t()])])
class InputIsInList(Two):
    def forward(self, x, values):
        return self.a(x) * (2.0 if any(value is x for value in values) else 3.0)


@odd()
class ValueIsInput(Two):
    """In eval mode dropout returns the very tensor that it is given."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.a(x) * (2.0 if self.drop(x) is x else 3.0)


@odd()
class ContiguousIsItself(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if x.contiguous() is x else 3.0)


_MISSING = object()


@odd(optional)
class DefaultIsSentinel(Two):
    def forward(self, x, m=_MISSING):
        return self.a(x) * (2.0 if m is _MISSING else 3.0)


class _Pair(NamedTuple):
    x: Any
    m: Any = None


@odd(lambda t: [call(_Pair(t())), call(_Pair(t(), t())), call(_Pair(t()))])
class NoneInNamedTuple(Two):
    def forward(self, pair):
        return self.a(pair.x) * (2.0 if pair.m is None else 3.0)


class _Bag:
    def __init__(self, x: Any, m: Any = None) -> None:
        self.x, self.m = x, m


@odd(lambda t: [call(_Bag(t())), call(_Bag(t(), t())), call(_Bag(t()))])
class NoneInObject(Two):
    def forward(self, bag):
        return self.a(bag.x) * (2.0 if bag.m is None else 3.0)


@odd(optional)
class NoneKeptForChild(Two):
    def __init__(self):
        super().__init__()
        self.kept = None

    def inner(self, x):
        return x * (2.0 if self.kept is None else 3.0)

    def forward(self, x, m=None):
        self.kept = m
        return self.inner(self.a(x))


@odd(lambda t: [call(t(4, 16)), call(t(1, 16)), call(t(16))])
class ShapeCompared(Two):
    def forward(self, x):
        if x.dim() == 1:
            return self.b(x)
        return self.a(x) * (2.0 if x.shape[0] == 1 else 3.0)


@odd(lambda t: [call(t(4, 16)), call(t(2, 16)), call(t(6, 16))])
class SplitsByLength(Two):
    def forward(self, x):
        return torch.stack([self.a(row) for row in x]).sum(0)


@odd()
class AsksForGradientOfInput(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if x.requires_grad else 3.0)


@odd(lambda t: [call(t()), call(t().to(torch.bfloat16)), call(t())])
class IsFloatingOfSize(Two):
    def forward(self, x):
        return self.a(x.float()) * (2.0 if x.element_size() == 2 else 3.0)


@odd(optional)
class NoneInNestedFunction(Two):
    def forward(self, x, m=None):
        def factor():
            return 2.0 if m is None else 3.0

        return self.a(x) * factor()


@odd(optional)
class NoneInLambdaDefault(Two):
    def forward(self, x, m=None):
        return self.a(x) * (lambda value=m: 2.0 if value is None else 3.0)()


@odd(lambda t: [call(t(), [t(), None]), call(t(), [None, None]), call(t(), [])])
class CountsNones(Two):
    def forward(self, x, values):
        return self.a(x) * (1 + list(values).count(None))


@odd(optional)
class FilterNone(Two):
    def forward(self, x, m=None):
        given = list(filter(lambda value: value is not None, [x, m]))
        return self.a(given[-1]) * len(given)


class _Table(nn.Module):
    def forward(self, x):
        return {(1, 2): x, (3, 4): None}


@odd()
class NoneInTableByTuple(Two):
    def __init__(self):
        super().__init__()
        self.table = _Table()

    def forward(self, x):
        found = self.table(x)[3, 4]
        return self.b(self.a(x if found is None else found * 2))
