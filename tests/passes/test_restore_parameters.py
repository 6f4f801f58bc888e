"""Weights become parameters again, also those of opaque submodules, whose originals are left as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxhash
from fxhash.capture.opaque import OpaqueModule
from fxhash.passes import restore_parameters
from tests.helpers import assert_same_outputs, may_be_opaque, smallest_transform
from tests.models import MODELS

pytestmark = may_be_opaque

# Opaque in part and as a whole, with and without collected arguments, with hooks, with buffers.
OPAQUE = [
    "LSTM",
    "GRU",
    "BareLSTM",
    "ProjectedLSTM",
    "Attention",
    "BranchesOnInput",
    "BranchesOnMode",
    "CountsCalls",
    "HookedWeightNorm",
    "StarArguments",
]
every_opaque_model = pytest.mark.parametrize("name", OPAQUE)


@every_opaque_model
def test_the_input_works_on_and_its_modules_stay_empty(name):
    build, inputs = MODELS[name]
    example = inputs()
    gm = smallest_transform(build().eval(), 0.9, seed=0)
    untouched = copy.deepcopy(gm)
    dense = restore_parameters(gm).graph_module
    for module in gm.modules():
        if isinstance(module, OpaqueModule):
            held = dict(module.wrapped_module.named_parameters(remove_duplicate=False))
            assert not held.keys() & {each for names in module.names for each in names}
    for _ in range(2):
        assert_same_outputs(gm, untouched, *example)
        assert_same_outputs(dense, untouched, *example)
    assert_same_outputs(restore_parameters(gm).graph_module, untouched, *example)


@pytest.mark.parametrize("name", [name for name in OPAQUE if name != "StarArguments"])
def test_no_plain_module_of_the_result_is_one_of_the_input(name):
    """Or `train()` on one of them would reach the other. What goes on collecting arguments stays as it is."""
    gm = smallest_transform(MODELS[name][0](), 0.9, seed=0)
    of_result = {id(module) for module in restore_parameters(gm).graph_module.modules()}
    opaque = [module for module in gm.modules() if isinstance(module, OpaqueModule)]
    assert opaque
    assert not any(id(nested) in of_result for module in opaque for nested in module.wrapped_module.modules())


def test_buffers_and_what_stays_dense_are_shared_as_with_any_pass():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.norm = nn.BatchNorm1d(16)

        def forward(self, x):
            return self.norm(self.linear(x)) if x.sum() < 1e9 else x

    gm = fxhash.transform(nn.Sequential(Branching(), nn.Linear(16, 16)), 0.9, seed=0)
    dense = restore_parameters(gm).graph_module
    before, after = gm.get_submodule("0.opaque_part").wrapped_module, dense.get_submodule("0")
    assert type(after) is Branching
    assert after.norm.running_mean is before.norm.running_mean
    assert after.linear.bias is before.linear.bias
    assert after.linear is not before.linear
    assert before.linear.weight is None


@every_opaque_model
def test_materialized_it_shares_nothing_with_the_transformed_model(name):
    gm = smallest_transform(MODELS[name][0](), 0.9, seed=0)
    dense = fxhash.materialize(gm)
    held = {id(each) for each in (*gm.modules(), *gm.parameters(), *gm.buffers())}
    assert not any(id(each) in held for each in (*dense.modules(), *dense.parameters(), *dense.buffers()))


def test_a_layer_of_two_opaque_submodules_stays_one_parameter():
    class Branching(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.own, self.shared = nn.Linear(16, 16), shared

        def forward(self, x):
            return self.shared(self.own(x)) if x.sum() < 1e9 else x

    shared = nn.Linear(16, 16)
    gm = fxhash.transform(nn.Sequential(Branching(shared), Branching(shared)), 0.9, seed=0)
    dense = restore_parameters(gm).graph_module
    assert dense.get_parameter("0.shared.weight") is dense.get_parameter("1.shared.weight")
    x = torch.randn(2, 16)
    assert_same_outputs(gm, dense, x)
    assert_same_outputs(gm, fxhash.lower_for_deploy(gm), x)


class Tied(nn.Module):
    """A table that is the last layer's weight too, biases that are tied, and a layer."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(100, 32), nn.Linear(32, 100)
        self.middle = nn.Linear(32, 32)
        self.last.weight, self.middle.bias_too = self.table.weight, self.middle.bias

    def forward(self, tokens):
        return self.last(self.middle(self.table(tokens)) + self.middle.bias_too)


@pytest.mark.parametrize("exclude", [None, "table"])
@pytest.mark.parametrize("capture", ["trace", "modules"])
def test_tied_parameters_have_all_their_names(exclude, capture):
    """The state dict fits the original, also that of a copy."""
    gm = fxhash.transform(Tied(), 0.9, exclude=exclude, capture=capture, seed=0)
    tokens = torch.arange(10)
    for dense in (fxhash.materialize(gm), copy.deepcopy(fxhash.materialize(gm))):
        assert dense.last.weight is dense.table.weight
        assert dense.middle.bias_too is dense.middle.bias
        model = Tied()
        model.load_state_dict(dense.state_dict())
        assert_same_outputs(gm, model, tokens)
        assert_same_outputs(gm, dense, tokens)


@pytest.mark.parametrize("capture", ["trace", "modules"])
@pytest.mark.parametrize(
    "function", [fxhash.lower_for_deploy, fxhash.lower_for_training, fxhash.materialize, fxhash.summary, "save"]
)
def test_a_layer_that_was_put_into_a_transformed_model_is_refused(function, capture, tmp_path):
    """It would have no effect: the generated weight is what is computed with."""
    gm = fxhash.transform(Tied(), 0.9, capture=capture, seed=0)
    function = (lambda gm: fxhash.save(gm, tmp_path / "model.safetensors")) if function == "save" else function
    function(gm)
    gm.middle = nn.Linear(32, 3)
    with pytest.raises(fxhash.TransformError, match=r"a parameter 'middle\.weight' was put into this transformed"):
        function(gm)


class Headed(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Linear(32, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        return self.head(self.body(x).relu())


@pytest.mark.parametrize(
    "head", [nn.Linear(64, 7), nn.Linear(64, 3, bias=False), nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 3))]
)
def test_a_dense_layer_that_was_replaced_is_computed_with_but_not_saved(head, tmp_path):
    """No file of another shape is written that nothing could load; what was trained is not lost."""
    gm = fxhash.transform(Headed(), 0.5, exclude=["^head"], seed=0).eval()
    gm.head = head
    x = torch.randn(4, 32)
    for form in (fxhash.lower_for_deploy, fxhash.lower_for_training, fxhash.materialize):
        assert_same_outputs(gm, form(gm), x)
    path = tmp_path / "model.safetensors"
    for function in (fxhash.summary, fxhash.quantize_factors, lambda gm: fxhash.save(gm, path)):
        with pytest.raises(fxhash.TransformError, match=r"replaced or removed since fxhash\.transform.*'head\."):
            function(gm)
    assert not path.exists()


def test_a_dense_layer_of_the_same_shape_may_be_replaced(tmp_path):
    gm = fxhash.transform(Headed(), 0.5, exclude=["^head"], seed=0)
    gm.head = nn.Linear(64, 3)
    fxhash.save(gm, tmp_path / "model.safetensors")
    assert_same_outputs(gm, fxhash.load(tmp_path / "model.safetensors", Headed()), torch.randn(4, 32))
