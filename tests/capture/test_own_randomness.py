"""Operations draw from a generator of their own: the same under one seed, and nothing from torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fxhash.capture.own_randomness import OwnRandomness

x = torch.ones(64, 8)
DRAWS = {
    "dropout": lambda: F.dropout(x, 0.5, True),
    "alpha_dropout": lambda: F.alpha_dropout(x, 0.5, True),
    "feature_dropout": lambda: F.dropout2d(x[:, :, None, None], 0.5, True),
    "rand": lambda: torch.rand(8),
    "randn": lambda: torch.randn(8),
    "rand_like": lambda: torch.rand_like(x),
    "randn_like": lambda: torch.randn_like(x),
    "randint": lambda: torch.randint(0, 100, (8,)),
    "randint_like": lambda: torch.randint_like(x, 100),
    "randperm": lambda: torch.randperm(50),
    "bernoulli": lambda: torch.bernoulli(x * 0.5),
    "bernoulli_": lambda: x.new_empty(64).bernoulli_(0.5),
    "normal": lambda: torch.normal(0.0, 1.0, (8,)),
    "multinomial": lambda: torch.multinomial(torch.ones(50), 8),
    "gumbel_softmax": lambda: F.gumbel_softmax(x),
    "rrelu": lambda: F.rrelu(x - 2, training=True),
}


def drawn(name, seed):
    with OwnRandomness(seed):
        return DRAWS[name]()


@pytest.mark.parametrize("name", DRAWS)
def test_draws_follow_the_seed_alone(name):
    before = torch.get_rng_state()
    assert torch.equal(drawn(name, 3), drawn(name, 3))
    assert not torch.equal(drawn(name, 3), drawn(name, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_keeps_its_mean_and_its_gradient():
    inputs = torch.ones(100_000, requires_grad=True)
    with OwnRandomness(0):
        output = F.dropout(inputs, 0.2, True)
    output.sum().backward()
    assert set(output.tolist()) == {0.0, 1.25}
    assert abs(output.mean().item() - 1) < 0.02
    assert torch.equal(inputs.grad, output.detach())
