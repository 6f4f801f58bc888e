"""Convolutions with constant kernels equal the layers that they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fxhash
from fxhash.graph.layers import CONVOLUTIONS
from fxhash.lowering.constant_layers import (
    constant_conv,
    constant_pointwise_conv,
    constant_separable_conv,
    linear_apart,
    linear_of_apart,
)
from fxhash.lowering.convolution import depthwise
from fxhash.lowering.functional import adaptive_conv, adaptive_linear, factored_conv
from fxhash.passes.arrange_constants import arrange_constants
from fxhash.smh.arithmetic import generate, separable
from tests.lowering.test_functional import factors
from tests.lowering.test_lowered_models import transformed

OPTIONS = st.fixed_dictionaries(
    {"stride": st.integers(1, 2), "padding": st.integers(0, 1), "dilation": st.integers(1, 2)}
)
CHANNELS = st.sampled_from([1, 2, 3, 4, 6, 8])


@given(st.data(), st.integers(1, 3), st.booleans(), st.booleans(), OPTIONS)
def test_convolutions(data, dimensions, with_bias, batched, options):
    shape, left, right = data.draw(factors(st.integers(1, 6), CHANNELS, *[st.integers(1, 2)] * dimensions))
    batch = [data.draw(st.integers(0, 3))] if batched else []
    x = torch.randn(*batch, shape[1], *[7 - dimensions] * dimensions, dtype=torch.float64)
    bias = torch.randn(shape[0], dtype=torch.float64) if with_bias else None
    expected = CONVOLUTIONS[dimensions](x, generate(left, right, shape), bias, **options)
    torch.testing.assert_close(constant_conv(x, left, right, shape, bias, **options), expected)


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(), OPTIONS)
def test_separable_convolutions(data, dimensions, count, with_bias, batched, options):
    channels = data.draw(st.integers(1, 6))
    kernel = [data.draw(st.integers(1, 2)) for _ in range(dimensions)]
    pointwise, left, right = data.draw(
        factors(st.integers(1, 6), st.just(channels * count), *[st.just(1)] * dimensions)
    )
    kernels = torch.randn(count, torch.Size(kernel).numel(), dtype=torch.float64)
    shape = (pointwise[0], channels, *kernel)
    batch = [2] if batched else []
    x = torch.randn(*batch, channels, *[7 - dimensions] * dimensions, dtype=torch.float64)
    bias = torch.randn(shape[0], dtype=torch.float64) if with_bias else None
    weight = generate(left, right, pointwise)
    expected = CONVOLUTIONS[dimensions](x, separable(weight, kernels, shape), bias, **options)
    for actual in (
        constant_separable_conv(x, kernels, left, right, shape, bias, **options),
        constant_pointwise_conv(x, kernels, weight, shape, bias, **options),
    ):
        torch.testing.assert_close(actual, expected)


def lowered(name):
    gm, inputs = transformed(name)
    return fxhash.lower_for_deploy(gm), inputs


@pytest.mark.parametrize("name", ["ResidualConvNet", "SeparableConvolutions"])
def test_an_arranged_model_has_the_same_outputs(name):
    model, inputs = lowered(name)
    arranged = arrange_constants(model)
    assert arranged.modified
    assert not arrange_constants(arranged.graph_module).modified
    torch.testing.assert_close(arranged.graph_module(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def test_no_layer_is_left_that_reshapes_activations_or_chooses_by_their_number():
    torch.manual_seed(0)
    wide = nn.Sequential(
        *(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 256, 3), nn.Conv2d(256, 256, 3), nn.Conv2d(256, 256, 1)),
        *(nn.Flatten(), nn.Linear(1024, 64)),
    )
    model = fxhash.lower_for_deploy(fxhash.transform(wide, 0.3, seed=0))
    before = {node.target for node in model.graph.nodes}
    assert {depthwise, adaptive_conv, adaptive_linear} <= before, "the case is not covered"
    result = arrange_constants(model).graph_module
    after = {node.target for node in result.graph.nodes}
    assert not after & {depthwise, factored_conv, adaptive_conv, adaptive_linear}
    assert F.linear in after
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-5)


def perceptron(*between):
    """Two linear layers that are factored, the first of which has several channels in a row of `W`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), *between, nn.Linear(256, 64))
    gm = fxhash.transform(model, 0.1, aspect=1 / 8, seed=0)
    lowered = fxhash.lower_for_deploy(gm, methods={".": "factored"})
    assert lowered.smh_factors.compression.layout.cols % 256 == 0, "the case is not covered"
    return lowered


@pytest.mark.parametrize(
    ("between", "apart"),
    [([nn.GELU()], True), ([nn.ReLU(), nn.Dropout()], True), ([], True), ([nn.Softmax(-1)], False)],
    ids=["gelu", "relu and dropout", "nothing", "softmax"],
)
def test_features_stay_out_of_order_between_two_layers(between, apart):
    model = perceptron(*between)
    result = arrange_constants(model).graph_module
    targets = {node.target for node in result.graph.nodes}
    assert ({linear_apart, linear_of_apart} <= targets) == apart
    x = torch.randn(3, 5, 64)
    torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_reads_features_out_of_order_gives_its_own_in_order():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 256), nn.Linear(256, 64)]
    gm = fxhash.transform(nn.Sequential(*layers), 0.1, aspect=1 / 4, seed=0)
    model = fxhash.lower_for_deploy(gm, methods={".": "factored"})
    result, x = arrange_constants(model).graph_module, torch.randn(3, 64)
    targets = [node.target for node in result.graph.nodes]
    assert (targets.count(linear_apart), targets.count(linear_of_apart)) == (2, 2)
    torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-5)
