"""Lowered models that keep their factors in 8 bits: outputs of rounded factors, in the bytes of the plan."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from hypothesis import given
from torch import nn

import fxhash
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.factor_store import FactorStore
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.lowering.method import Method
from fxhash.passes import LOWERING, lower
from tests.helpers import assert_same_outputs, smallest_transform
from tests.lowering.test_lowered_models import perturb
from tests.models import MODELS
from tests.strategies import random_models
from tests.test_quantized_form import every_bits, rounded


def transformed(name, compress=0.3):
    torch.manual_seed(0)
    model, inputs = MODELS[name]
    gm = smallest_transform(model(), compress, seed=0)
    perturb(gm)
    return gm.eval(), inputs()


def assert_stored_as_planned(lowered):
    """All that the plan says is stored, in the bytes that it says; of factors, integers."""
    store = lowered.smh_factors
    assert sum(each.nbytes for each in store.parameters()) == store.plan.factor_bytes + store.plan.cached_bytes
    assert store.right.dtype == torch.int8
    for use in store.plan.uses:
        if use.stores("left"):
            assert store(use.key("left"), is_widened=False).dtype == torch.int8
            assert store(use.key("left")).dtype == store.dtype


@given(case=random_models())
def test_outputs_are_those_of_rounded_factors(case):
    model, x = case
    gm = smallest_transform(model, 0.5, seed=0).eval()
    lowered = fxhash.lower_for_deploy(gm, weights="int8")
    assert_same_outputs(lowered, rounded(gm, 8), x)
    assert_stored_as_planned(lowered)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_in_eight_bits(name):
    gm, inputs = transformed(name)
    lowered = fxhash.lower_for_deploy(gm, weights="int8")
    assert_same_outputs(lowered, rounded(gm, 8), *inputs)
    assert_stored_as_planned(lowered)


@pytest.mark.parametrize("name", ["ResidualConvNet", "SeparableConvolutions", "TiedEmbedding", "Attention", "LSTM"])
@every_bits
def test_it_has_the_integers_that_were_trained(name, bits, group):
    gm, inputs = transformed(name)
    quantized = fxhash.quantize_factors(gm, bits, group=group)
    lowered = fxhash.lower_for_deploy(quantized, weights="int8")
    assert_same_outputs(lowered, quantized, *inputs)
    assert_stored_as_planned(lowered)
    assert lowered.smh_factors.plan.factor_bits == quantized.smh_generator.plan.factor_bits
    left = [each.rows for each in lowered.smh_factors.stored_rows() if each.role == "left"]
    assert max(rows.abs().max() for rows in left) == 2 ** (bits - 1) - 1
    assert lowered.smh_factors.right.abs().max() == 127


@pytest.mark.parametrize("name", ["ResidualConvNet", "SeparableConvolutions", "TiedEmbedding", "Attention", "LSTM"])
def test_every_first_few_of_the_passes(name):
    gm, inputs = transformed(name)
    quantized = fxhash.quantize_factors(gm, 4, group=3)
    plan = plan_lowering(quantized, budget=30_000, options=LoweringOptions(in_eight_bits=True))
    for count in range(len(LOWERING) + 1):
        assert_same_outputs(lower(quantized, plan, LOWERING[:count]), quantized, *inputs)


class Mixed(nn.Module):
    """Layers that are factored, generated and looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 32)
        self.narrow = nn.Linear(32, 256)
        self.wide = nn.Linear(256, 256)
        self.recurrent = nn.LSTM(256, 32, batch_first=True)

    def forward(self, tokens):
        return self.recurrent(torch.relu(self.wide(torch.relu(self.narrow(self.table(tokens))))))[0]


def widened_peak(lowered, *inputs):
    """Most bytes at a time of factors in floating point that one call makes."""
    now = peak = 0
    stored = {id(each) for each in lowered.smh_factors.parameters()}
    forward = FactorStore.forward

    def freed(size):
        nonlocal now
        now -= size

    def counting(self, *args, **kwargs):
        nonlocal now, peak
        result = forward(self, *args, **kwargs)
        if id(result) not in stored:
            now += result.nbytes
            peak = max(peak, now)
            weakref.finalize(result, freed, result.nbytes)
        return result

    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(FactorStore, "forward", counting)
        lowered(*inputs)
    assert now == 0
    return peak


def test_stated_bytes_of_widened_factors_are_the_measured_ones():
    torch.manual_seed(0)
    gm = fxhash.transform(Mixed(), 0.2, seed=0).eval()
    lowered = fxhash.lower_for_deploy(gm, weights="int8")
    plan = lowered.smh_factors.plan
    assert {use.method for use in plan.uses} >= {Method.FACTORED, Method.GENERATE}
    assert widened_peak(lowered, torch.randint(500, (2, 3))) == plan.widened_bytes
    floats = fxhash.lower_for_deploy(gm)
    assert floats.smh_factors.plan.widened_bytes == widened_peak(floats, torch.randint(500, (2, 3))) == 0
    assert plan.factor_bytes < 0.35 * floats.smh_factors.plan.factor_bytes
    assert f"widened factors: at most {plan.widened_bytes / 1e3:,.1f} kB at a time" in str(plan)


def test_of_a_table_only_rows_that_are_looked_up_are_widened():
    torch.manual_seed(0)
    for size, compress in ((32, 0.3), (8, 0.1)):
        gm = fxhash.transform(nn.Sequential(nn.Embedding(4000, size)), compress, seed=0).eval()
        lowered = fxhash.lower_for_deploy(gm, weights="int8")
        (use,) = lowered.smh_factors.plan.uses
        assert use.method is Method.FACTORED
        tokens = torch.randint(4000, (2, 3))
        layout = gm.smh_generator.plan.layout
        assert widened_peak(lowered, tokens) == 4 * layout.rank * layout.cols == lowered.smh_factors.plan.widened_bytes
        assert_same_outputs(lowered, rounded(gm, 8), tokens)


def test_copies_pickles_and_state_dicts():
    gm, inputs = transformed("ResidualConvNet")
    lowered = fxhash.lower_for_deploy(gm, weights="int8")
    other = fxhash.lower_for_deploy(transformed("ResidualConvNet", 0.3)[0], weights="int8")
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(lowered.state_dict())
    for each in (copy.deepcopy(lowered), pickle.loads(pickle.dumps(lowered)), other):
        assert_same_outputs(each, lowered, *inputs, rtol=0)
        assert_stored_as_planned(each)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_in_another_type(dtype):
    gm, inputs = transformed("ResidualConvNet")
    quantized = fxhash.quantize_factors(gm, 4, group=5)
    lowered = fxhash.lower_for_deploy(quantized, dtype=dtype, weights="int8")
    assert lowered.smh_factors.dtype == dtype
    assert_stored_as_planned(lowered)
    inputs = [each.to(dtype) for each in inputs]
    assert_same_outputs(lowered, fxhash.lower_for_deploy(quantized, dtype=dtype), *inputs, rtol=0.05)


def test_a_model_in_bfloat16():
    gm = fxhash.transform(nn.Linear(40, 40, dtype=torch.bfloat16), 0.5, seed=0).eval()
    lowered = fxhash.lower_for_deploy(gm, weights="int8")
    assert_stored_as_planned(lowered)
    assert_same_outputs(lowered, gm, torch.randn(3, 40, dtype=torch.bfloat16), rtol=0.05)


def test_a_memory_budget_caches_weights_in_floating_point():
    gm, inputs = transformed("ResidualConvNet")
    lowered = fxhash.lower_for_deploy(gm, weights="int8", memory_budget="1MB")
    assert lowered.smh_factors.plan.cached_bytes
    assert_same_outputs(lowered, rounded(gm, 8), *inputs)
    assert sum(each.nbytes for each in lowered.smh_factors.parameters()) == (
        lowered.smh_factors.plan.factor_bytes + lowered.smh_factors.plan.cached_bytes
    )


@pytest.mark.parametrize("weights", ["int4", "float32", torch.int8, 8, True])
def test_other_forms_are_refused(weights):
    gm, _ = transformed("ResidualConvNet")
    with pytest.raises(fxhash.PlanError, match=r'weights=.* is no form of factors: give "int8"'):
        fxhash.lower_for_deploy(gm, weights=weights)


def test_it_is_not_trained():
    gm, inputs = transformed("ResidualConvNet")
    lowered = fxhash.lower_for_deploy(gm, weights="int8").train()
    with pytest.raises(fxhash.errors.InputError, match="is for inference alone"):
        lowered(*inputs)
