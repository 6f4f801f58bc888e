"""Capture: equal outputs in both modes, honest fallbacks, and nothing left behind on the model."""

from __future__ import annotations

import random
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fxhash
from fxhash.capture.opaque import OpaqueModule
from tests.helpers import assert_same_outputs
from tests.models import MODELS, BranchesOnInput, KeepsActivation, ResidualConvNet
from tests.strategies import random_models

every_model = pytest.mark.parametrize("name", MODELS)


def reasons(gm):
    return {path: part.reason for path, part in gm.named_modules() if isinstance(part, OpaqueModule)}


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
        ("CountsCalls", "'calls'"),
        ("LSTM", "torch.nn.LSTM branches on its inputs or mode"),
        ("MaxNormEmbedding", "max_norm changes its weight in place"),
        ("HookedWeightNorm", "it has hooks"),
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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_in_which_one_may_trace(mode):
    with mode():
        inside = ResidualConvNet().eval()
        for model in (inside, ResidualConvNet().eval()):
            gm = fxhash.transform(model, 0.3, seed=0)
            assert not reasons(gm)
            x = torch.randn(2, 3, 6, 6)
            torch.testing.assert_close(fxhash.lower_for_deploy(gm)(x), gm(x), rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("build", [MODELS["CountsCalls"][0], MODELS["RandomControlFlow"][0], DrawsFromNumpy])
def test_side_effects_make_only_their_block_opaque(build):
    model = nn.Sequential(build(), nn.Linear(16, 16))
    assert list(reasons(fxhash.trace(model))) == ["0.opaque_part"]


def test_backward_hooks_run():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].register_full_backward_hook(lambda module, grad_input, grad_output: (grad_input[0] * 0,))
    x = torch.randn(2, 16, requires_grad=True)
    fxhash.trace(model)(x).sum().backward()
    assert x.grad.abs().sum() == 0


def test_a_hook_of_a_block_runs_at_each_call():
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 16)), nn.Linear(16, 16))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    traced = fxhash.trace(model)
    assert not seen
    traced(torch.randn(2, 16))
    assert [type(each) for each in seen] == [torch.Tensor]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_inside_an_opaque_part(use_reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            if x.sum() > 1e9:
                return x
            return checkpoint(self.linear, x, use_reentrant=use_reentrant)

    gm = fxhash.transform(Checkpointed(), 0.9)
    gm(torch.randn(2, 16, requires_grad=True)).sum().backward()
    assert gm.smh_generator.right.grad.abs().sum() > 0


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_block_that_checkpoints_goes_on_checkpointing(use_reentrant):
    """It is opaque: a graph would forget to throw its activations away."""
    calls = []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(torch.is_grad_enabled())
            return super().forward(x).relu()

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = Counted(16, 16)

        def forward(self, x):
            return checkpoint(self.linear, x, use_reentrant=use_reentrant)

    gm = fxhash.transform(nn.Sequential(nn.Linear(16, 16), Block()), 0.9)
    assert list(reasons(gm)) == ["1.opaque_part"]
    calls.clear()
    loss = gm(torch.randn(2, 16)).sum()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2
    assert all(left.grad.any() for left in gm.smh_generator.left)


def test_threads_share_one_opaque_part():
    gm = fxhash.lower_for_deploy(fxhash.transform(BranchesOnInput(), 0.9, seed=0))
    batches = [torch.randn(2, 16) for _ in range(60)]
    with torch.no_grad(), ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for one, other in zip(map(gm, batches), pool.map(gm, batches), strict=True):
            assert torch.equal(one, other)


def test_an_opaque_part_holds_no_parameters_even_after_an_error():
    gm = fxhash.transform(BranchesOnInput(), 0.9)
    part = gm.inner.opaque_part
    with pytest.raises(RuntimeError):
        part(
            tuple(gm.smh_generator(f"inner.{name}.weight") for name in ("positive", "negative")),
            (torch.randn(3, 7),),
            {},
        )
    assert not [name for name, _ in part.named_parameters() if "weight" in name]
    recurrent = fxhash.transform(MODELS["LSTM"][0](), 0.6).recurrent.opaque_part.wrapped_module
    assert all(weight is None for weight in recurrent._flat_weights)


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
def test_annotations_are_no_text(name):
    assert not any(isinstance(node.type, str) for node in fxhash.trace(MODELS[name][0]()).graph.nodes)


def test_keyword_only_arguments_of_an_opaque_model():
    class KeywordOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x, *, scale=2.0):
            return self.linear(x) * scale if x.sum() < 1e9 else x

    model, x = KeywordOnly(), torch.randn(2, 16)
    torch.testing.assert_close(fxhash.trace(model)(x, scale=3.0), model(x, scale=3.0))


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
