"""Opaque submodules whose code looks at their layers: these are replaced only where the outputs show no difference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxhash
from tests.helpers import assert_same_outputs, may_be_opaque

pytestmark = may_be_opaque


class FindsLayersByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        for name in ("first", "second"):
            x = getattr(self, name)(x)
        return x if x.sum() > 0 else x + 1


class ComparesTypes(FindsLayersByName):
    def forward(self, x):
        x = super().forward(x)
        return x * 2 if type(self.first) is nn.Linear else x


class AsksForGradients(FindsLayersByName):
    """Only for inputs that it never gets."""

    def forward(self, x):
        return self.rescaled(x) if x.dim() > 5 and x.sum() > 0 else super().forward(x)

    def rescaled(self, x):
        return x * sum(parameter.grad.norm() for parameter in self.parameters())


def uses(gm, **options):
    lowered = fxhash.lower_for_deploy(gm, **options)
    return lowered, {use.parameter.fqn: use.module for use in lowered.smh_factors.plan.uses}


def test_layers_are_replaced_where_the_outputs_are_the_same():
    x = torch.randn(4, 32)
    gm = fxhash.transform(FindsLayersByName(), 0.3, seed=0).eval()
    _, without = uses(gm)
    assert set(without.values()) == {None}
    lowered, modules = uses(gm, example_inputs=(x,))
    assert modules == {"first.weight": "first", "second.weight": "second"}
    assert_same_outputs(gm, lowered, x)


def test_layers_stay_where_the_outputs_differ():
    x = torch.randn(4, 32)
    gm = fxhash.transform(ComparesTypes(), 0.3, seed=0).eval()
    lowered, modules = uses(gm, example_inputs=(x,))
    assert set(modules.values()) == {None}
    assert_same_outputs(gm, lowered, x)


def test_outputs_that_differ_all_the_same_are_told_of():
    """Digits that rounding leaves nothing of."""

    class LastDigits(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x):
            return torch.frac(self.linear(x) * 1e7)

    x = torch.randn(4, 32)
    gm = fxhash.transform(LastDigits(), 0.2, seed=0)
    with pytest.warns(UserWarning, match="differs from the trained one on example_inputs: its output differs"):
        fxhash.lower_for_deploy(gm, example_inputs=(x,))


def test_example_inputs_that_do_not_fit():
    gm = fxhash.transform(FindsLayersByName(), 0.3, seed=0)
    with pytest.raises(fxhash.TransformError, match="don't fit the model"):
        fxhash.lower_for_deploy(gm, example_inputs=(torch.randn(4, 31),))


def test_code_that_is_never_called_does_not_count():
    with pytest.raises(fxhash.TransformError, match="give example_inputs that show that it is never called"):
        fxhash.transform(AsksForGradients(), 0.3)
    x = torch.randn(4, 32)
    model = AsksForGradients().eval()
    gm = fxhash.transform(model, 0.3, seed=0, example_inputs=(x,))
    assert_same_outputs(gm, fxhash.lower_for_deploy(gm), x)


def test_code_that_is_called_counts():
    with pytest.raises(fxhash.TransformError, match="asks for grad of its parameters"):
        fxhash.transform(AsksForGradients(), 0.3, example_inputs=(torch.ones(1, 1, 1, 1, 1, 32),))
