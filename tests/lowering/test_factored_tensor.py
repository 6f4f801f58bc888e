"""A factored tensor behaves as the matrix that it stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fxhash
from fxhash.lowering.factored_tensor import FactoredTensor
from fxhash.smh.arithmetic import generate
from tests.helpers import LargestTensor, assert_same_outputs
from tests.lowering.test_functional import factors
from tests.lowering.test_lowered_models import perturb

sizes = st.integers(1, 12)
modes = st.sampled_from([torch.no_grad, torch.enable_grad, torch.inference_mode])


def both(case):
    shape, left, right = case
    return FactoredTensor(left, right, shape), generate(left, right, shape)


@given(factors(sizes, sizes), st.lists(st.integers(1, 4), min_size=1, max_size=2), st.booleans(), modes)
def test_linear_layers(case, batch, with_bias, mode):
    factored, matrix = both(case)
    x = torch.randn(*batch, matrix.shape[1], dtype=torch.float64)
    bias = torch.randn(matrix.shape[0], dtype=torch.float64) if with_bias else None
    with mode():
        torch.testing.assert_close(F.linear(x, factored, bias), F.linear(x, matrix, bias))


@given(factors(sizes, sizes), st.data())
def test_pieces(case, data):
    factored, matrix = both(case)
    chunks = data.draw(st.integers(1, matrix.shape[0]))
    for one, other in zip(factored.chunk(chunks), matrix.chunk(chunks), strict=True):
        x = torch.randn(2, matrix.shape[1], dtype=torch.float64)
        torch.testing.assert_close(F.linear(x, one), F.linear(x, other))
    first = data.draw(st.integers(0, matrix.shape[0]))
    for one, other in zip(
        factored.split([first, matrix.shape[0] - first]), matrix.split([first, matrix.shape[0] - first]), strict=True
    ):
        torch.testing.assert_close(one + 0, other)


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: w + 1,
        lambda w: w.t(),
        lambda w: w.t() @ w,
        lambda w: w[2:, 1],
        lambda w: w.sum(),
        lambda w: w.reshape(-1),
        lambda w: torch.cat([w, w]),
        lambda w: w.to(torch.float32),
        lambda w: w.clone(),
        lambda w: w.chunk(2, dim=1)[0],
        lambda w: F.linear(w, w),
        lambda w: torch.addmm(w, w, w.t(), beta=2),
        lambda w: torch.tensor([w.shape[0], w.dim(), w.numel(), *w.stride(), *w.t().stride()]),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_anything_else_gets_the_weight(operation, mode):
    left, right = torch.randn(6, 2, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    with mode():
        actual = operation(FactoredTensor(left, right, (6, 6)))
        actual = actual.materialize() if isinstance(actual, FactoredTensor) else actual
        torch.testing.assert_close(actual, operation(generate(left, right, (6, 6))))


class Attends(nn.Module):
    """Self-attention, attention to something else, and a whole transformer layer."""

    def __init__(self, **options):
        super().__init__()
        self.own = nn.MultiheadAttention(64, 4, batch_first=True, **options)
        self.other = nn.MultiheadAttention(64, 4, batch_first=True, **options)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)

    def forward(self, x, y):
        x, _ = self.own(x, x, x, need_weights=False)
        x, weights = self.other(x, y, y)
        return self.layer(x), weights


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}, {"bias": False}])
def test_attention_applies_factors(options):
    torch.manual_seed(0)
    gm = fxhash.transform(Attends(**options), 0.1, seed=0)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm)
    x, y = torch.randn(2, 5, 64), torch.randn(2, 7, 64)
    assert_same_outputs(gm.eval(), deployed, x, y)
    methods = {use.fqn: use.method for use in deployed.smh_factors.plan.uses}
    matrices = [fqn for fqn in methods if "bias" not in fqn]
    assert {methods[fqn] for fqn in matrices} == {"factored"}
    with torch.inference_mode(), LargestTensor() as largest:
        deployed(x, y)
    assert 0 < largest.numel < 64 * 64, "a weight was materialized"


def test_gradients_of_inputs_pass_through_attention():
    torch.manual_seed(0)
    gm = fxhash.transform(Attends(), 0.1, seed=0).eval()
    deployed = fxhash.lower_for_deploy(gm)
    x, y = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 7, 64)
    (expected,) = torch.autograd.grad(gm(x, y)[0].square().sum(), x)
    (actual,) = torch.autograd.grad(deployed(x, y)[0].square().sum(), x)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_recurrent_layers_get_weights_that_are_planned():
    deployed = fxhash.lower_for_deploy(fxhash.transform(nn.Sequential(nn.LSTM(64, 64)), 0.1))
    assert {use.method for use in deployed.smh_factors.plan.uses} == {"generate"}
