"""Numbers that come of sizes, types and values, by functions of Python whose names this file only calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.odd.registry import Call, Inputs, Two, call, odd


def of_three_sizes(t: Inputs) -> list[Call]:
    return [call(t(4, 16)), call(t(9, 16)), call(t(1, 16))]


@odd(of_three_sizes)
class NumberOfSize(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x).relu()) * int(x.shape[0] ** 0.5)


@odd()
class NumberOfValue(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x).relu()) * int(x.detach().sum()) + float(x.detach().mean())


@odd(of_three_sizes)
class LengthOfInput(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x).relu()) * len(x)


@odd(of_three_sizes)
class LengthOfListOfValues(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x).relu()) * len([x, x])


@odd(of_three_sizes)
class LargestAndSmallestSize(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x)) * max(x.shape[0], 3) - min([x.shape[0], 3])


@odd(of_three_sizes)
class LargestByKey(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x)) * max(x.shape[0], 3, key=lambda size: -size)


@odd(of_three_sizes)
class RoundsSize(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x)) * round(x.shape[0] / 3) + round(x.shape[0] / 7, 1)


@odd(of_three_sizes)
class RepeatsAsOftenAsSize(Two):
    def forward(self, x: Any) -> Any:
        for _ in range(int(x.shape[0])):
            x = x + 1
        return self.b(self.a(x))


@odd(of_three_sizes)
class AsksForTypeOfSize(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x)) * (2 if isinstance(x.shape[0], int) else 3)


def of_two_types(t: Inputs) -> list[Call]:
    return [call(t()), call(t().double()), call(t())]


@odd(of_two_types)
class LimitsOfType(Two):
    def forward(self, x: Any) -> Any:
        limits = torch.finfo(x.dtype)
        return self.b(self.a(x.float())).to(x.dtype) * limits.eps * 1e6, -torch.finfo(x.dtype).max


@odd(lambda t: [call(t().long()), call(t().int()), call(t().long())])
class LimitsOfIntegers(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x.float())), torch.iinfo(x.dtype).max


@odd(of_three_sizes)
class SizesAsArguments(Two):
    def forward(self, x: Any) -> Any:
        added = torch.ones(x.shape[0], 16) + torch.zeros(x.shape[0], 16)
        return self.b(self.a(x)) + added + torch.rand(x.shape[0], 1) + torch.randn(x.shape[0], 1)


@odd(of_three_sizes)
class SpreadsShape(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x)) + torch.ones(*x.shape)


@odd()
class ChangesAFreshTensorOfSizes(Two):
    def forward(self, x: Any) -> Any:
        total = torch.zeros(x.shape[0], 16)
        total += self.a(x)
        return self.b(total.relu_())


def _is_asked(asked: bool) -> float:
    # What draws is never run, but its names are there.
    import random as drawing

    return drawing.random() if asked else 1.0


def _drawn(asked: bool) -> float:
    if asked:
        return torch.rand(()).item() + _is_asked(asked)
    return 2.0


@odd()
class DrawsOnlyIfAsked(Two):
    asked = False

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x)) * _drawn(self.asked)


@odd()
class DrawsAsAsked(DrawsOnlyIfAsked):
    asked = True


@odd()
class DrawsInTraining(Two):
    def forward(self, x: Any) -> Any:
        return self.b(self.a(x)) * _drawn(self.training)


class _SometimesNone(nn.Module):
    def forward(self, x: Any, given: bool) -> Any:
        if given:
            return x * 2
        return None


class _NoneInTheEnd(nn.Module):
    def forward(self, x: Any, given: bool) -> Any:
        for _ in range(given):
            return x * 2


class _NoneByName(nn.Module):
    def forward(self, x: Any, given: bool) -> Any:
        result = x * 2
        if not given:
            result = None
        return result


class _NoneInATuple(nn.Module):
    def forward(self, x: Any, given: bool) -> Any:
        return x * 2 if given else None, x


class _AsksWhatAModuleGives(Two):
    giving: type[nn.Module]

    def __init__(self) -> None:
        super().__init__()
        self.given = self.giving()
        self.first = False

    def forward(self, x: Any) -> Any:
        h = self.given(x, x.shape[0] > 4)
        return self.b(self.a(x if h is None else h))


@odd(of_three_sizes)
class AModuleGivesNoneAtTimes(_AsksWhatAModuleGives):
    giving = _SometimesNone


@odd(of_three_sizes)
class AModuleGivesNoneInTheEnd(_AsksWhatAModuleGives):
    giving = _NoneInTheEnd


@odd(of_three_sizes)
class AModuleGivesNoneByName(_AsksWhatAModuleGives):
    giving = _NoneByName


@odd(of_three_sizes)
class AModuleGivesNoneInATuple(_AsksWhatAModuleGives):
    giving = _NoneInATuple

    def forward(self, x: Any) -> Any:
        h, x = self.given(x, x.shape[0] > 4)
        return self.b(self.a(x if h is None else h))
