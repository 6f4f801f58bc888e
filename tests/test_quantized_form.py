"""Models whose factors are trained in 8 or 4 bits: the same parameters, the weights of rounded factors."""

from __future__ import annotations

import copy
import pickle
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fxhash
from fxhash.smh.factor_bits import FactorBits, fake_quantized
from tests.helpers import assert_same_outputs, generator_of, smallest_transform
from tests.lowering.test_lowered_models import perturb
from tests.lowering.test_training import gradients
from tests.models import MODELS, ResidualConvNet, SeparableConvolutions
from tests.strategies import random_models

every_model = pytest.mark.parametrize("name", MODELS)
every_bits = pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 5)])


def transformed(model, compress=0.3):
    gm = smallest_transform(model, compress, seed=0)
    perturb(gm)
    return gm


def rounded(gm, bits, group=None):
    """A model that holds the values that quantized factors have, made of its parameters alone."""
    result = copy.deepcopy(gm)
    generator, setting = generator_of(result), FactorBits(bits, group)
    with torch.no_grad():
        generator.right.copy_(fake_quantized(generator.right, FactorBits(8, group)))
        for kernels in generator.kernels:
            kernels.copy_(fake_quantized(kernels, FactorBits(8)))
        more = iter(generator.more_left)
        for left, parameter in zip(generator.left, generator.plan.hashed, strict=True):
            if not parameter.more_rows:
                left.copy_(fake_quantized(left, setting))
                continue
            column, count = next(more), parameter.more_rows
            together = torch.cat([left[:count], column], 1)
            left[:count], column[:] = fake_quantized(together, setting).split([left.shape[1], 1], 1)
            left[count:] = fake_quantized(torch.nn.functional.pad(left[count:], (0, 1)), setting)[:, :-1]
    return result


@every_bits
@given(case=random_models())
def test_weights_are_those_of_rounded_factors(bits, group, case):
    model, x = case
    gm = transformed(model, 0.5)
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    quantized, expected = fxhash.quantize_factors(gm, bits, group=group), rounded(gm, bits, group)
    for parameter in generator_of(gm).plan.hashed:
        assert torch.equal(generator_of(quantized)(parameter.fqn), generator_of(expected)(parameter.fqn))
    assert_same_outputs(quantized, expected, x, rtol=0)
    assert quantized.training == gm.training
    state = quantized.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert generator_of(gm).plan.factor_bits is None
    assert generator_of(quantized).plan.factor_bits == FactorBits(bits, group)


@every_model
def test_every_kind_of_model_in_four_bits(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]
    gm, inputs = transformed(model()), inputs()
    quantized = fxhash.quantize_factors(gm, 4, group=6)
    assert all(one is other for one, other in zip(gm.parameters(), quantized.parameters(), strict=True))
    expected = rounded(gm, 4, 6)
    # Outputs may depend on how often a model was called.
    for each in (gm, quantized, expected):
        each.eval()
    assert_same_outputs(copy.deepcopy(quantized), copy.deepcopy(expected), *inputs)
    for form in (fxhash.lower_for_training, fxhash.lower_for_deploy, fxhash.materialize):
        assert_same_outputs(form(copy.deepcopy(quantized)).eval(), form(copy.deepcopy(expected)).eval(), *inputs)


@pytest.mark.parametrize("name", ["ResidualConvNet", "SeparableConvolutions", "TiedEmbedding", "Attention", "LSTM"])
@every_bits
def test_gradients_are_those_of_rounded_factors(name, bits, group):
    """Straight through: the gradients of a model that holds the rounded values."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]
    gm, inputs = transformed(model()), inputs()
    expected = gradients(rounded(gm, bits, group), inputs)
    quantized = fxhash.quantize_factors(gm, bits, group=group)
    for form in (
        quantized,
        fxhash.lower_for_training(quantized),
        fxhash.quantize_factors(fxhash.lower_for_training(gm), bits, group=group),
    ):
        found = gradients(form, inputs)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if value is not None:
                torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4 * value.abs().max().item() + 1e-9)


def test_one_optimizer_trains_both_and_an_average_keeps_the_setting():
    gm = transformed(ResidualConvNet())
    quantized = fxhash.lower_for_training(fxhash.quantize_factors(gm, 4))
    average = torch.optim.swa_utils.AveragedModel(
        quantized, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    optimizer = torch.optim.SGD(gm.parameters(), 0.1)
    x = torch.randn(4, 3, 6, 6)
    for _ in range(3):
        optimizer.zero_grad()
        quantized(x).square().mean().backward()
        optimizer.step()
        average.update_parameters(quantized)
    # The parameters move by less than a step of what they are rounded to.
    right = generator_of(quantized).right
    assert not torch.equal(right, generator_of(quantized).factor_right())
    assert torch.equal(generator_of(quantized)(), fake_quantized(generator_of(gm).right, FactorBits(8)))
    held = generator_of(average)
    assert not torch.equal(held.right, right)
    assert torch.equal(held(), fake_quantized(held.right, FactorBits(8)))


def test_copies_and_pickles_keep_the_setting():
    quantized = fxhash.quantize_factors(transformed(ResidualConvNet()), 4, group=3).eval()
    x = torch.randn(2, 3, 6, 6)
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert generator_of(other).plan == generator_of(quantized).plan
        assert_same_outputs(other, quantized, x, rtol=0)
    assert generator_of(fxhash.quantize_factors(quantized, 8)).plan.factor_bits == FactorBits(8)


def test_autocast_rounds_factors_as_without_it():
    torch.manual_seed(0)
    gm, x = transformed(SeparableConvolutions()), torch.randn(3, 12, 6, 6)
    quantized, expected = fxhash.quantize_factors(gm, 4), rounded(gm, 4)
    for form in (lambda each: each, fxhash.lower_for_training):
        with torch.autocast("cpu", torch.bfloat16):
            assert_same_outputs(form(quantized), form(expected), x, rtol=0)


@given(bits=st.sampled_from([8, 4]), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_lowered_in_another_type_it_has_the_integers_that_it_was_trained_with(bits, dtype):
    torch.manual_seed(0)
    gm, x = transformed(ResidualConvNet()).eval(), torch.randn(2, 3, 6, 6, dtype=dtype)
    quantized = fxhash.lower_for_deploy(fxhash.quantize_factors(gm, bits), dtype=dtype)
    assert_same_outputs(quantized, fxhash.lower_for_deploy(rounded(gm, bits), dtype=dtype), x, rtol=0)


def test_a_model_that_holds_transformed_ones():
    torch.manual_seed(0)
    parts = [fxhash.transform(torch.nn.Linear(20, 20), 0.5, seed=seed) for seed in (0, 1)]
    model = torch.nn.Sequential(*parts, torch.nn.Linear(20, 2))
    quantized = fxhash.quantize_factors(model, 4)
    x = torch.randn(3, 20)
    expected = torch.nn.Sequential(*[rounded(part, 4) for part in parts], model[2])
    assert_same_outputs(quantized, expected, x, rtol=0)
    assert quantized[2].weight is model[2].weight


def test_factors_of_narrow_types_are_refused():
    gm = fxhash.transform(torch.nn.Linear(20, 20, dtype=torch.bfloat16), 0.5)
    message = "factors in 4 bits are trained in float32, not bfloat16"
    with pytest.raises(fxhash.PlanError, match=message):
        fxhash.quantize_factors(gm, 4)
    converted = fxhash.quantize_factors(fxhash.transform(torch.nn.Linear(20, 20), 0.5), 4).bfloat16()
    with pytest.raises(fxhash.PlanError, match=message):
        fxhash.lower_for_deploy(converted)
    with pytest.raises(fxhash.PlanError, match=message):
        fxhash.quantize_factors(converted, 4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="inductor needs a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Skipping serialization")
@every_bits
def test_compiled_it_rounds_alike(bits, group):
    """A compiler that took the steps' rounding for nothing would round a part of the factors otherwise."""
    torch.manual_seed(0)
    dense = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.ReLU(), torch.nn.Linear(60, 40))
    gm, x = fxhash.quantize_factors(transformed(dense), bits, group=group), torch.randn(5, 40)
    assert torch.equal(torch.compile(generator_of(gm))(), generator_of(gm)())
    form = fxhash.lower_for_training(gm)
    expected, found = gradients(form, (x,)), gradients(form, (x,), torch.compile(form).__call__)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4 * value.abs().max().item() + 1e-9)
