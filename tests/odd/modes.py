"""Modes that are read elsewhere than on `self`, or in a way that a trace can't record; modes changed in forward."""

# ruff: noqa: B009
from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.odd.registry import Two, odd


class WithDropout(Two):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(16)


@odd()
class ModeOfChild(WithDropout):
    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, self.drop.training))


@odd()
class ModeOfChildInIf(WithDropout):
    def forward(self, x):
        h = self.a(x)
        if self.drop.training:
            h = h * 2
        return self.b(h)


@odd()
class ModeOfLayer(WithDropout):
    def forward(self, x):
        return self.b(self.a(x) * (2 if self.a.training else 3))


@odd()
class ModeOfNorm(WithDropout):
    def forward(self, x):
        return self.b(self.norm(self.a(x))) if self.norm.training else self.a(x)


@odd()
class ModeOfGrandchild(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(WithDropout(), nn.ReLU())

    def forward(self, x):
        return self.block(x) * (2.0 if self.block[0].drop.training else 3.0)


class _ReadsParent(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.parents = [parent]

    def forward(self, x):
        return self.linear(x) * (2 if self.parents[0].training else 3)


@odd()
class ModeOfParent(Two):
    def __init__(self):
        super().__init__()
        self.child = _ReadsParent(self)

    def forward(self, x):
        return self.child(self.a(x))


@odd()
class ModeByGetattr(Two):
    def forward(self, x):
        return self.a(x) * 2 if getattr(self, "training") else self.b(x)


@odd()
class ModeByGetattrOfChild(WithDropout):
    def forward(self, x):
        return self.a(x) * 2 if getattr(self.drop, "training", False) else self.b(x)


@odd()
class ModeIsTrue(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if self.training is True else 3.0)


@odd()
class ModeEqualsTrue(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if self.training == True else 3.0)  # noqa: E712


@odd()
class ModeInLambda(Two):
    def forward(self, x):
        mode = lambda: self.training  # noqa: E731
        return self.a(x) * (2.0 if mode() else 3.0)


def _factor(module: nn.Module) -> float:
    return 2.0 if module.training else 3.0


@odd()
class ModeInHelper(Two):
    def forward(self, x):
        return self.a(x) * _factor(self)


@odd()
class ModeOfChildInHelper(WithDropout):
    def forward(self, x):
        return self.a(x) * _factor(self.drop)


@odd()
class ModeByVars(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if vars(self)["training"] else 3.0)


@odd()
class ModeByDict(WithDropout):
    def forward(self, x):
        return self.a(x) * (2.0 if self.drop.__dict__["training"] else 3.0)


@odd()
class ModeOfAllModules(WithDropout):
    def forward(self, x):
        return self.a(x) * (2.0 if all(module.training for module in self.modules()) else 3.0)


@odd()
class ModesInComprehension(WithDropout):
    def forward(self, x):
        return self.a(x) * sum([2.0 for child in self.children() if child.training])


@odd()
class ModeAsNumber(Two):
    def forward(self, x):
        return self.a(x) * (1 + int(self.training))


@odd()
class ModeOfChildAsNumber(WithDropout):
    def forward(self, x):
        return self.a(x) * (1 + self.drop.training)


@odd()
class ModeAsKey(Two):
    def forward(self, x):
        return {True: self.a, False: self.b}[self.training](x)


@odd()
class ModeAsIndex(Two):
    def forward(self, x):
        return (self.a, self.b)[self.training](x)


@odd()
class ModeInMatch(Two):
    def forward(self, x):
        match self.training:
            case True:
                return self.a(x)
            case False:
                return self.b(x)


@odd()
class ModesCompared(WithDropout):
    def __init__(self):
        super().__init__()
        self.drop.eval()

    def forward(self, x):
        return self.a(x) * (2.0 if self.training == self.drop.training else 3.0)


@odd()
class ModeAndFlag(Two):
    def __init__(self):
        super().__init__()
        self.scaled = True

    def forward(self, x):
        return self.a(x) * (2.0 if self.scaled and self.training else 3.0)


@odd()
class ModeInText(Two):
    def forward(self, x):
        return self.a(x) * {"True": 2.0, "False": 3.0}[f"{self.training}"]


@odd()
class ModeOfUnregisteredModule(Two):
    """The module in the tuple follows no `train()` and no `eval()`."""

    def __init__(self):
        super().__init__()
        self.hidden = (nn.Dropout(0.5),)

    def forward(self, x):
        return self.b(self.hidden[0](self.a(x)))


@odd()
class ModeChangeRemembered(Two):
    def __init__(self):
        super().__init__()
        self.was = True

    def forward(self, x):
        changed = self.was != self.training
        self.was = bool(self.training)
        return self.a(x) * (2.0 if changed else 3.0)


@odd()
class ChildToEvalAndBack(WithDropout):
    def forward(self, x):
        h = self.a(x)
        self.drop.eval()
        quiet = self.drop(h)
        self.drop.train()
        return self.b(quiet + self.drop(h))


@odd()
class ChildToEvalForGood(WithDropout):
    def forward(self, x):
        y = self.drop(self.a(x))
        self.drop.eval()
        return y


@odd()
class ChildAlwaysTraining(WithDropout):
    """Dropout in evaluation too, as an ensemble."""

    def forward(self, x):
        self.drop.train()
        return self.b(self.drop(self.a(x)))


@odd()
class ModeAssigned(WithDropout):
    def forward(self, x):
        self.drop.training = not self.drop.training
        return self.b(self.drop(self.a(x)))


@odd()
class WholeModelToEvalAndBack(WithDropout):
    def forward(self, x):
        was = bool(self.training)
        self.eval()
        y = self.norm(self.drop(self.a(x)))
        self.train(was)
        return self.norm(y)


@odd()
class RateChangedAndBack(WithDropout):
    def forward(self, x):
        rate = self.drop.p
        self.drop.p = 0.9
        h = self.drop(self.a(x))
        self.drop.p = rate
        return self.b(self.drop(h))


@odd()
class RateGrows(WithDropout):
    def forward(self, x):
        self.drop.p = min(0.9, self.drop.p + 0.1)
        return self.b(self.drop(self.a(x)))


@odd()
class RateByMode(WithDropout):
    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.1 if self.training else 0.9, True))


@odd()
class MomentumChangedAndBack(WithDropout):
    def forward(self, x):
        self.norm.momentum = 0.5
        h = self.norm(self.a(x))
        self.norm.momentum = 0.1
        return h


@odd()
class SettingOfLayerChanged(Two):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        h = self.norm(self.a(x))
        self.norm.eps += 0.5
        return h


@odd()
class TrainKeepsNormInEval(WithDropout):
    """The usual way to freeze batch norms."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.norm.eval()
        return self

    def __init__(self):
        super().__init__()
        self.train()

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


@odd()
class EvalChangesAttribute(Two):
    def __init__(self):
        super().__init__()
        self.factor = 2.0

    def train(self, mode: bool = True) -> Any:
        self.factor = 2.0 if mode else 3.0
        return super().train(mode)

    def forward(self, x):
        return self.a(x) * self.factor


@odd()
class ModeIsAProperty(Two):
    @property
    def training(self):
        return False

    @training.setter
    def training(self, value):
        pass

    def forward(self, x):
        return F.dropout(self.a(x), 0.5, self.training)


@odd()
class PartlyInEval(WithDropout):
    def __init__(self):
        super().__init__()
        self.norm.eval()
        self.a.eval()

    def forward(self, x):
        return self.b(F.dropout(self.norm(self.a(x)), 0.5, self.a.training))


@odd()
class DropoutByModeOfSelf(Two):
    """Nothing odd: what a trace must follow."""

    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, self.training))


@odd()
class ModePassedDown(Two):
    def scaled(self, x, training):
        return x * 2 if training else x

    def forward(self, x):
        return self.scaled(self.a(x), self.training)


@odd()
class ModeChoosesNoise(Two):
    def forward(self, x):
        noise = torch.randn_like(x) if self.training else torch.zeros_like(x)
        return self.a(x + noise)


@odd()
class ModeChoosesNumber(WithDropout):
    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5 if self.training else 0.0))


@odd()
class ModeOfTwoModulesChoosesNumbers(WithDropout):
    def __init__(self):
        super().__init__()
        self.norm.eval()

    def forward(self, x):
        h = self.a(x) * (2.0 if self.training else 3.0)
        return self.b(h) + (1.0 if self.norm.training else 5.0)


@odd()
class ModeChoosesSignOfZero(Two):
    def forward(self, x):
        return self.b(self.a(x)) / (0.0 if self.training else -0.0)


@odd()
class ModeChoosesPartOfSlice(Two):
    def forward(self, x):
        return self.b(self.a(x))[:, : 8 if self.training else 4]


@odd()
class ModeChoosesLayer(Two):
    def forward(self, x):
        return (self.a if self.training else self.b)(x)


@odd()
class ModeChoosesWeight(Two):
    def forward(self, x):
        return F.linear(x, (self.a if self.training else self.b).weight)


@odd()
class ModeChoosesBetweenValues(Two):
    def forward(self, x):
        h, g = self.a(x), self.b(x)
        return torch.relu(h if self.training else g)


@odd()
class ModeChoosesOperation(Two):
    def forward(self, x):
        h = self.a(x)
        return self.b(h.relu() if self.training else h.sigmoid())


@odd()
class ModeChoosesResult(Two):
    def forward(self, x):
        return self.b(self.a(x)), 1 if self.training else 2


@odd()
class ModeChoosesTensor(Two):
    def forward(self, x):
        return self.b(self.a(x)) * torch.tensor(2.0 if self.training else 3.0)


@odd()
class CountsInOneMode(Two):
    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x):
        if self.training:
            self.count += 1
        return self.b(self.a(x)) * (1.0 if self.training else self.count)


@odd()
class ModeBranchIsCaught(Two):
    def forward(self, x):
        scale = 2.0
        try:
            scale = 3.0 if self.training else 4.0
        except BaseException:
            scale = 5.0
        return self.b(self.a(x)) * scale


@odd()
class ModeOfEachModuleInTurn(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([ModeChoosesNumber() for _ in range(2)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x) * (2 if self.training else 1)
        return x
