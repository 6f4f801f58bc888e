"""Capture: equal outputs in both modes, every parameter a node, names and defaults that a graph can have."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn.utils import parametrizations

import fxhash
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs
from tests.models import MODELS, ResidualConvNet
from tests.strategies import random_models

every_model = pytest.mark.parametrize("name", MODELS)


@given(random_models())
def test_outputs_are_equal_in_both_modes(case):
    model, x = case
    traced = fxhash.trace(model)
    for mode in (model.training, not model.training):
        assert_same_outputs(model.train(mode), traced.train(mode), x, rtol=0)


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_equal_for(name, training):
    build, inputs = MODELS[name]
    model, example = build().train(training), inputs()
    traced = fxhash.trace(model)
    assert traced.training == training
    for mode in (training, not training, training):
        assert_same_outputs(model.train(mode), traced.train(mode), *example)
    assert_same_outputs(model, fxhash.trace(traced), *example)


@every_model
def test_every_parameter_is_a_node(name):
    build, _ = MODELS[name]
    model = build()
    traced = fxhash.trace(model)
    read = {node.target for node in traced.graph.nodes if node.op == "get_attr"}
    norms = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    unread = {"forgotten.weight", "forgotten.bias"}
    shared = {"second.weight"}  # the same view of one storage as another
    for fqn, parameter in model.named_parameters():
        assert fqn in read or parameter in norms or fqn in unread | shared


def test_a_module_without_exposed_parameters_is_kept_whole():
    model = ResidualConvNet()
    traced = fxhash.trace(model, expose=["body.weight"])
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["stem", "norm", "head"]
    assert [node.target for node in traced.graph.nodes if node.op == "get_attr"] == ["body.weight", "body.bias"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_in_which_one_may_trace(mode):
    with mode():
        inside = ResidualConvNet().eval()
        for model in (inside, ResidualConvNet().eval()):
            gm = fxhash.transform(model, 0.3, seed=0)
            assert not reasons(gm)
            x = torch.randn(2, 3, 6, 6)
            torch.testing.assert_close(fxhash.lower_for_deploy(gm)(x), gm(x), rtol=1e-4, atol=1e-5)


def test_an_optional_input_that_is_only_passed_on_is_traced():
    class PassesOn(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x, mask=None):
            return torch.nn.functional.scaled_dot_product_attention(self.linear(x), x, x, mask)

    traced = fxhash.trace(PassesOn())
    assert not reasons(traced)
    x = torch.randn(2, 4, 16)
    assert not torch.equal(traced(x), traced(x, torch.full((4, 4), -1.0).triu()))


def test_arithmetic_on_hidden_parameters_is_not_frozen():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

        def forward(self, x):
            return x @ torch.stack([*self.parameters()][::2]).sum(0)

    model = Hidden()
    for setting in (torch.enable_grad(), torch.no_grad()):
        with setting:
            traced = fxhash.trace(model)
        assert not reasons(traced)
    with torch.no_grad():
        traced.get_parameter("layers.0.weight").zero_()
        traced.get_parameter("layers.1.weight").zero_()
    assert traced(torch.randn(2, 16)).abs().sum() == 0


def test_submodules_in_another_mode_stay_so():
    model = MODELS["FunctionalDropout"][0]()
    model.drop.eval()
    traced = fxhash.trace(model)
    assert not traced.drop.training
    assert traced.training_flag.training
    assert_same_outputs(model, traced, torch.randn(4, 16))


def test_code_is_readable():
    code = fxhash.trace(nn.Sequential(nn.Linear(3, 3), nn.Dropout())).code
    assert '_0_weight = getattr(self, "0").weight' in code


def test_sharing_and_copying():
    model = nn.Sequential(MODELS["SharedStorage"][0](), nn.Linear(16, 16))
    traced = fxhash.trace(model, expose=["1.weight"])
    parameters = dict(traced.named_parameters(remove_duplicate=False))
    assert parameters["0.first.weight"] is parameters["0.second.weight"]
    assert parameters["1.weight"] is model[1].weight
    assert parameters["1.bias"] is not model[1].bias


def test_own_traces_are_not_second_guessed():
    """A literal `training=True` that the author wrote stays, in a trace of ours and in one of an eval model."""
    x = torch.randn(4, 16)
    always = MODELS["AlwaysDropout"][0]
    for model in (fxhash.trace(always()), torch.fx.symbolic_trace(always().eval())):
        gm = fxhash.transform(model, 0.9).eval()
        assert not torch.equal(gm(x), gm(x))


@every_model
def test_annotations_are_no_strings(name):
    assert not any(isinstance(node.type, str) for node in fxhash.trace(MODELS[name][0]()).graph.nodes)


def test_a_mode_that_is_read_under_a_parametrization():
    class OwnWeight(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 16))

        def forward(self, x):
            return torch.nn.functional.dropout(x @ self.weight, 0.5, self.training)

    model, x = parametrizations.weight_norm(OwnWeight()), torch.randn(2, 16)
    traced = fxhash.trace(model)
    for mode in (True, False):
        assert_same_outputs(model.train(mode), traced.train(mode), x)


@pytest.mark.parametrize("name", ["graph", "code", "opaque_part"])
def test_names_that_a_graph_module_needs(name):
    with pytest.raises(fxhash.TransformError, match=f"'{name}' has a name that a graph module uses itself"):
        fxhash.trace(nn.Sequential(OrderedDict([(name, nn.Linear(3, 3))])))


def test_defaults_that_code_can_not_spell():
    class TensorDefault(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x, scale=torch.ones(3)):  # noqa: B008
            return self.linear(x) * scale

    with pytest.raises(fxhash.TransformError, match="argument 'scale' of forward has a Tensor as its default"):
        fxhash.trace(TensorDefault())


def test_transformed_models_are_refused():
    with pytest.raises(fxhash.TransformError, match="transformed already"):
        fxhash.trace(fxhash.transform(nn.Linear(30, 30), 0.5))
