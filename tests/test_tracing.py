"""Capture: equal outputs in both modes, honest fallbacks, and nothing left behind on the model."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from torch import nn

import fxhash
from fxhash.parts import OpaquePart
from tests.helpers import assert_same_outputs
from tests.models import MODELS, BranchesOnInput, KeepsActivation, ResidualConvNet
from tests.strategies import random_models

every_model = pytest.mark.parametrize("name", MODELS)


def reasons(gm):
    return {path: part.reason for path, part in gm.named_modules() if isinstance(part, OpaquePart)}


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


def test_one_untraceable_block_does_not_make_the_model_opaque():
    assert reasons(fxhash.trace(BranchesOnInput())) == {
        "inner.opaque_part": "TraceError: symbolically traced variables cannot be used as inputs to control flow"
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BranchesOnMode", "control flow"),
        ("RandomControlFlow", "draws random numbers"),
        ("NoGradBlock", "switches gradients off"),
        ("CountsCalls", "assign"),
        ("LSTM", "torch.nn.LSTM branches on its inputs or mode"),
        ("MaxNormEmbedding", "max_norm changes its weight in place"),
        ("HookedWeightNorm", "it has forward hooks"),
    ],
)
def test_reasons(name, reason):
    (found, *_) = reasons(fxhash.trace(MODELS[name][0]().eval())).values()
    assert reason in found


def test_autocast_blocks_are_not_forgotten():
    class Autocast(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.linear(x)

    model = Autocast()
    traced = fxhash.trace(model)
    assert "switches autocast on or off" in reasons(traced)["opaque_part"]
    assert traced(torch.randn(2, 16)).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fxhash.trace(nn.Linear(3, 3)) is not None


def test_hooks_run():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    assert_same_outputs(model, fxhash.trace(model), torch.randn(2, 16))


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
        assert "freeze into a constant" in reasons(traced)["opaque_part"]
    with torch.no_grad():
        traced.get_parameter("layers.0.weight").zero_()
        traced.get_parameter("layers.1.weight").zero_()
    assert traced(torch.randn(2, 16)).abs().sum() == 0


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
