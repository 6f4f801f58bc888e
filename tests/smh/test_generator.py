"""Initial values, types and precision of what the generator makes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import nn

import fxhash
from tests.helpers import generator_of, smallest_transform, uncalibrated
from tests.strategies import random_models


@given(random_models())
def test_initial_standard_deviation_is_that_of_each_original_parameter(case):
    model, _ = case
    generator = generator_of(smallest_transform(model, 0.5, seed=0))
    for parameter in generator.plan.hashed:
        original = model.get_parameter(parameter.fqn).detach().double()
        weight = generator(parameter.fqn).detach().double()
        tolerance = 2e-2 if parameter.dtype == "bfloat16" else 1e-3
        torch.testing.assert_close(weight.std(), original.std(), rtol=tolerance, atol=1e-6)


@uncalibrated
@pytest.mark.parametrize("init", ["random", "pretrained"])
def test_left_is_initialized_as_large_as_the_original_and_right_with_variance_one(init):
    """Up to a factor of two or three; a step of an optimizer then changes these rows as it would have the weight."""
    model = nn.Sequential(nn.Linear(80, 300), nn.Linear(300, 80), nn.Linear(80, 80))
    nn.init.normal_(model[2].weight, std=3.0)
    generator = fxhash.transform(model, 0.2, init=init, seed=0).smh_generator
    assert abs(generator.right.square().mean().item() - 1) < 0.1
    for layer, left in zip(model, generator.left, strict=True):
        assert 0.3 < left.std().item() / layer.weight.std().item() < 1.5


def test_initial_weights_have_mean_zero():
    generator = fxhash.transform(nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 300)), 0.2, seed=0).smh_generator
    assert (generator.shifts == 0).all()
    for parameter in generator.plan.hashed:
        weight = generator(parameter.fqn)
        assert weight.mean().abs() < 0.1 * weight.std()


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-6, -2.3])
def test_a_constant_parameter_is_initialized_to_its_constant_and_learns(value):
    """No multiple of mean-zero noise stands for the all-ones weight of a norm, and its deviation is zero."""
    model = nn.Sequential(nn.Linear(30, 30), nn.LayerNorm((30, 30)))
    nn.init.constant_(model[1].weight, value)
    gm = fxhash.transform(model, 0.3, seed=0)
    weight = gm.smh_generator("1.weight")
    torch.testing.assert_close(weight, torch.full((30, 30), value))
    gm(torch.randn(5, 30, 30)).sum().backward()
    assert (gm.smh_generator.left[1].grad != 0).any(1).all()


@given(random_models())
def test_no_step_of_an_optimizer_turns_a_scale_around(case):
    """A scale that an optimizer carries through zero would turn the sign of its layer's output."""
    model, _ = case
    generator = generator_of(smallest_transform(model, 0.5, seed=0))
    before = {parameter.fqn: generator(parameter.fqn).detach() for parameter in generator.plan.hashed}
    with torch.no_grad():
        changes = torch.randn_like(generator.log_scales) * 2
        generator.log_scales.add_(changes)
    for index, parameter in enumerate(generator.plan.hashed):
        ratio = changes[index].double().exp().item()
        expected = ratio * (before[parameter.fqn] - generator.shifts[index]).double()
        tolerance = 2e-2 if parameter.dtype == "bfloat16" else 1e-4
        difference = (generator(parameter.fqn) - generator.shifts[index]).double() - expected
        assert difference.abs().max() <= tolerance * (expected.abs().max() + abs(generator.shifts[index].item()) + 1e-6)


def test_a_parameter_whose_mean_outweighs_its_standard_deviation_keeps_its_mean():
    model = nn.Linear(100, 100)
    nn.init.normal_(model.weight, mean=3.0, std=0.1)
    weight = fxhash.transform(model, 0.3, seed=0).smh_generator("weight")
    assert abs(weight.mean().item() - 3) < 0.05
    assert abs(weight.std().item() - 0.1) < 0.01


def test_a_single_element_has_no_standard_deviation():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 60), nn.Linear(60, 60))
    gm = fxhash.transform(model, 0.5)
    torch.testing.assert_close(gm.smh_generator("0.weight"), model[0].weight)


def test_seed_makes_it_reproducible_and_leaves_the_global_generator_alone():
    model = nn.Linear(40, 40)
    state = torch.get_rng_state()
    first, second = fxhash.transform(model, 0.3, seed=5), fxhash.transform(model, 0.3, seed=5)
    third = fxhash.transform(model, 0.3, seed=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    for other in (second, third):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not torch.equal(first.smh_generator.right, fxhash.transform(model, 0.3, seed=6).smh_generator.right)


def test_without_a_seed_the_global_generator_decides():
    model = nn.Linear(40, 40)
    torch.manual_seed(1)
    first = fxhash.transform(model, 0.3)
    second = fxhash.transform(model, 0.3)
    torch.manual_seed(1)
    again = fxhash.transform(model, 0.3)
    assert torch.equal(first.smh_generator.right, again.smh_generator.right)
    assert not torch.equal(first.smh_generator.right, second.smh_generator.right)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["float32", "float32"], torch.float32),
        (["bfloat16", "bfloat16"], torch.bfloat16),
        (["bfloat16", "float16"], torch.float32),
        (["float32", "float64"], torch.float64),
    ],
)
def test_factors_have_the_type_that_all_weights_promote_to(dtypes, expected):
    model = nn.ParameterList(nn.Parameter(torch.randn(40, 40, dtype=getattr(torch, dtype))) for dtype in dtypes)

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = model

        def forward(self):
            return [weight * 1 for weight in self.weights]

    gm = fxhash.transform(Reads(), 0.5)
    assert gm.smh_generator.right.dtype == expected
    assert [output.dtype for output in gm()] == [getattr(torch, dtype) for dtype in dtypes]


def test_autocast_leaves_the_product_in_full_precision():
    gm = fxhash.transform(nn.Linear(64, 64), 0.5, seed=0)
    expected = gm.smh_generator("weight")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gm(torch.randn(2, 64)).dtype == torch.bfloat16
        torch.testing.assert_close(gm.smh_generator("weight"), expected)


def test_repr_says_what_it_is():
    assert "rows=160, cols=10, rank=3, parameters=1" in repr(fxhash.transform(nn.Linear(40, 40), 0.3).smh_generator)


def separable_layer():
    """A transformed model with one separable convolution, and the generator's name of its weight."""
    model = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32, 400))
    gm = fxhash.transform(model, 0.05, seed=0)
    assert gm.smh_generator.parameter("0.weight").kernels
    return gm, "0.weight"


def test_the_pointwise_half_is_the_slice_without_kernels():
    """Times a power of two, which keeps what the depthwise half computes no larger than its input."""
    gm, name = separable_layer()
    generator = gm.smh_generator
    kernels = generator.depthwise_kernels(name)
    assert 0.5 <= kernels.abs().sum(1).max() < 1
    assert torch.equal(kernels * generator.balance(name), generator.kernels_of(name))
    pointwise = generator(name, "pointwise")
    assert pointwise.shape == (32, 32 * len(kernels), 1, 1)
    expected = torch.einsum("oik,kp->oip", pointwise.view(32, 32, -1), kernels).view(32, 32, 3, 3)
    torch.testing.assert_close(generator(name), expected)


def test_autocast_leaves_the_pointwise_half_in_full_precision():
    gm, name = separable_layer()
    expected = gm.smh_generator(name, "pointwise")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(gm.smh_generator(name, "pointwise"), expected)


def test_a_parameter_is_described_and_its_shift_is_given_where_it_is_not_zero():
    model = nn.Sequential(nn.Linear(30, 30), nn.LayerNorm((30, 30)))
    generator = fxhash.transform(model, 0.3, seed=0).smh_generator
    assert [generator.parameter(parameter.fqn) for parameter in generator.plan.hashed] == list(generator.plan.hashed)
    assert generator.shift("0.weight") is None
    torch.testing.assert_close(generator.shift("1.weight"), torch.tensor(1.0))


def test_weights_have_the_type_that_parameters_are_cast_to_for_a_call():
    """As FSDP's mixed precision does, which leaves buffers as they are."""
    generator = fxhash.transform(nn.Sequential(nn.Linear(30, 30), nn.LayerNorm((30, 30))), 0.3, seed=0).smh_generator
    expected = [generator(parameter.fqn) for parameter in generator.plan.hashed]
    for parameter in generator.parameters():
        parameter.data = parameter.data.bfloat16()
    for parameter, weight in zip(generator.plan.hashed, expected, strict=True):
        assert generator(parameter.fqn).dtype == torch.bfloat16
        torch.testing.assert_close(generator(parameter.fqn).float(), weight, rtol=0.1, atol=0.02)


@uncalibrated
def test_pretrained_initialization_of_a_separable_weight_is_that_weight():
    """One kernel for all pairs of channels is one of the principal ones, and its pairs are of rank one or two."""
    model = nn.Sequential(nn.Conv2d(32, 32, 3, bias=False), nn.Flatten(), nn.Linear(32, 400)).double()
    kernel = torch.tensor([[1.0, 2.0, 0.0], [0.0, -4.0, 0.0], [3.0, 0.0, -2.0]])
    with torch.no_grad():
        model[0].weight.copy_(kernel)
        model[2].weight.fill_(0.25)
    generator = fxhash.transform(model, 0.1, init="pretrained", seed=0).smh_generator
    assert generator.parameter("0.weight").kernels
    assert generator.plan.layout.rank >= 2
    torch.testing.assert_close(generator("0.weight"), model[0].weight)
    torch.testing.assert_close(generator("2.weight"), model[2].weight)


@uncalibrated
def test_pretrained_initialization_of_constants_is_these_constants():
    model = nn.Linear(40, 40)
    nn.init.constant_(model.weight, 0.5)
    random, pretrained = (
        fxhash.transform(model, 0.3, init=init, seed=0).smh_generator for init in ("random", "pretrained")
    )
    torch.testing.assert_close(pretrained("weight"), model.weight)
    assert all(torch.equal(one, other) for one, other in zip(random.parameters(), pretrained.parameters(), strict=True))
