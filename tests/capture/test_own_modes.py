"""Modules that override `train()` and `eval()`: traced if these do no more than set the flags."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxhash
from fxhash.capture.own_modes import modules_with_own_modes
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.5)
        self.factor = 2.0

    def forward(self, x):
        return self.dropout(self.linear(x)) * self.factor


class OnlyPasses(Plain):
    """As Hugging Face's models do."""

    def train(self, mode=True):
        changed = self.training != mode
        result = super().train(mode)
        if self.factor == 3.0 and changed:
            self.factor = 4.0
        return result

    def eval(self):
        return self.train(False)


class KeepsPartInEval(Plain):
    def train(self, mode=True):
        super().train(mode)
        self.dropout.eval()
        return self


class ChangesAttributeAndBack(Plain):
    def train(self, mode=True):
        self.factor = 2.0 if mode else 3.0
        return super().train(mode)


class MergesWeights(Plain):
    def eval(self):
        self.linear.weight.data.add_(1)
        return super().eval()


class ReturnsNothing(Plain):
    def train(self, mode=True):
        super().train(mode)


class Fails(Plain):
    def train(self, mode=True):
        raise RuntimeError("no training")


@pytest.mark.parametrize("kind", [KeepsPartInEval, ChangesAttributeAndBack, MergesWeights, ReturnsNothing, Fails])
@pytest.mark.parametrize("training", [True, False])
def test_what_does_more_than_set_flags_is_opaque(kind, training):
    model = nn.Sequential(kind())
    for module in model.modules():
        module.training = training
    before = model[0].linear.weight.detach().clone()
    assert modules_with_own_modes(model) == {"0"}
    assert reasons(fxhash.trace(model)) == {"0.opaque_part": "its train() or eval() does more than set flags"}
    assert torch.equal(model[0].linear.weight, before)
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("wrapped", [True, False])
def test_what_sets_flags_alone_is_traced(wrapped):
    model = nn.Sequential(OnlyPasses()) if wrapped else OnlyPasses()
    traced = fxhash.trace(model)
    assert reasons(traced) == {}
    x = torch.randn(4, 8)
    for mode in (False, True, False):
        torch.manual_seed(0)
        expected = model.train(mode)(x)
        torch.manual_seed(0)
        torch.testing.assert_close(traced.train(mode)(x), expected)
    assert_same_outputs(model.eval(), traced.eval(), x)
