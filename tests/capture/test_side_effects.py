"""What a forward does besides its result happens at each call, never once while tracing; nothing is left behind."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import fxhash
from tests.capture.reasons import reasons
from tests.helpers import may_be_opaque
from tests.models import MODELS, KeepsActivation

pytestmark = may_be_opaque


def test_random_state_is_as_before():
    model = MODELS["RandomControlFlow"][0]().eval()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    fxhash.trace(model)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


def test_nothing_is_left_behind_after_an_error():
    class Interrupted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            raise KeyboardInterrupt

    model = Interrupted()
    enter = torch.autocast.__enter__
    with pytest.raises(KeyboardInterrupt):
        fxhash.trace(model)
    assert type(model) is Interrupted
    assert torch.autocast.__enter__ is enter
    assert nn.Linear(2, 2)(torch.zeros(1, 2)).shape == (1, 2)


def test_activations_kept_on_the_model_are_no_proxies():
    model = KeepsActivation()
    traced = fxhash.trace(model)
    assert model.last is None
    assert traced(torch.randn(2, 16)).shape == (2, 16)


# What a trace can't see, each with inputs of which the model makes something different.


class AccumulatesInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x):
        total = torch.zeros(4, 16)
        for layer in self.layers:
            total += layer(x)
        return total


class OptionalInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x, y=None):
        x = self.linear(x)
        return x if y is None else x + y


class CountsInPython(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.count = 0

    def forward(self, x):
        self.count += 1
        return self.linear(x) * self.count


class ChangesPlainTensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.history = torch.zeros(16)

    def forward(self, x):
        self.history.add_(1)
        return self.linear(x) + self.history


class DrawsFromNumpy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return self.linear(x) * np.random.rand()


class OverriddenCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return self.linear(x)

    def __call__(self, x):
        return super().__call__(x) * 3


UNSEEN = [AccumulatesInPlace, OptionalInput, CountsInPython, ChangesPlainTensor, DrawsFromNumpy, OverriddenCall]


@pytest.mark.parametrize("build", UNSEEN)
def test_call_after_call_gives_what_the_model_gives(build):
    model = build()
    traced, transformed = fxhash.trace(model), fxhash.transform(model, 0.9, seed=0)
    deployed = fxhash.lower_for_deploy(transformed)
    reference = build()
    reference.load_state_dict(fxhash.materialize(transformed).state_dict())
    x, y = torch.randn(4, 16), torch.randn(4, 16)
    inputs = [(x,), (x, y), (x,)] if build is OptionalInput else [(x,)] * 3
    for each in inputs:
        outputs = []
        for candidate in (model, traced, reference, transformed, deployed):
            np.random.seed(0)
            outputs.append(candidate(*each))
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(outputs[3], outputs[2])
        torch.testing.assert_close(outputs[4], outputs[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [MODELS["CountsCalls"][0], MODELS["RandomControlFlow"][0], DrawsFromNumpy])
def test_side_effects_make_only_their_block_opaque(build):
    model = nn.Sequential(build(), nn.Linear(16, 16))
    assert list(reasons(fxhash.trace(model))) == ["0.opaque_part"]
