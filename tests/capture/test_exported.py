"""Programs of `torch.export` as input: the same weights are hashed, and the calling convention is the model's own."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from functools import partial

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.export import Dim
from torch.nn import functional as F
from torch.torch_version import TorchVersion

import fxhash
from tests.helpers import CountingOperators, assert_same_outputs, generator_of, may_be_opaque, run, smallest_transform
from tests.models import MODELS, AlwaysDropout, FunctionalDropout, ResidualConvNet
from tests.strategies import random_models

# Models that torch.export can't take, with its own reason.
NOT_EXPORTED = {
    "BranchesOnInput": "control flow on values",
    "RandomControlFlow": "random control flow",
    "HookedWeightNorm": "assigns an attribute",
    "KeepsActivation": "assigns an attribute",
}
if TorchVersion(torch.__version__) < "2.7":
    NOT_EXPORTED |= {
        "BareLSTM": "assigns a list of weights",
        "ProjectedLSTM": "assigns a list of weights",
        "WeightNorm": "has no derivative of a division that it exports",
    }
every_exported_model = pytest.mark.parametrize("name", [name for name in MODELS if name not in NOT_EXPORTED])
# Without running Python's bytecode through the compiler, which was the default before torch 2.7.
export = partial(torch.export.export, strict=False)
Pair = namedtuple("Pair", "first second")

pytestmark = [
    may_be_opaque,
    # torch's own notes on recurrent layers, on constants, (2.6) on the buffers that it is about to add, and (2.11) on
    # copies of its own structures.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node with no underlying reference"),
    pytest.mark.filterwarnings("ignore:Node plain target plain plain of  does not reference an nn.Module"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export"),
    pytest.mark.filterwarnings("ignore:.*was not registered as a buffer"),
]


@every_exported_model
@pytest.mark.parametrize("training", [True, False])
def test_captured_as_it_is(name, training):
    build, inputs = MODELS[name]
    model, example = build().train(training), inputs()
    program = export(model, example)
    assert_same_outputs(program.module(), fxhash.trace(program), *example, rtol=1e-6)


@every_exported_model
def test_transformed_lowered_stored_and_restored(name, tmp_path):
    build, inputs = MODELS[name]
    model, example = build().eval(), inputs()
    program = export(model, example)
    gm = smallest_transform(program, 0.5, seed=0)
    plan, of_module = generator_of(gm).plan, generator_of(smallest_transform(model, 0.5, seed=0)).plan
    assert {p.fqn for p in plan.hashed} == {p.fqn for p in of_module.hashed} - set(plan.unused)
    if name != "AlwaysDropout":
        # A dropout that is on stands for train mode in a program that has no other.
        gm.eval()
        assert_same_outputs(gm, fxhash.lower_for_deploy(gm), *example)
    assert_same_outputs(gm, fxhash.materialize(gm), *example)
    assert_same_outputs(gm, copy.deepcopy(gm), *example)
    assert_same_outputs(gm, pickle.loads(pickle.dumps(gm)), *example)
    fxhash.save(gm, tmp_path / "model.safetensors")
    assert_same_outputs(gm, fxhash.load(tmp_path / "model.safetensors", program), *example)


@given(random_models())
def test_it_is_the_same_model_as_the_module_itself(case):
    model, x = case
    program = export(model.eval(), (x,))
    gm, of_module = smallest_transform(program, 0.3, seed=0), smallest_transform(model, 0.3, seed=0)
    assert_same_outputs(gm.eval(), of_module, x)
    assert_same_outputs(fxhash.lower_for_deploy(gm), fxhash.lower_for_deploy(of_module), x)


def test_layers_are_lowered_and_norms_folded_like_those_of_the_module():
    program = export(ResidualConvNet().eval(), (torch.randn(2, 3, 6, 6),))
    from_program = fxhash.lower_for_deploy(fxhash.transform(program, 0.5, seed=0))
    from_module = fxhash.lower_for_deploy(fxhash.transform(ResidualConvNet(), 0.5, seed=0))
    described = [
        [(use.fqn, use.method, bool(use.folded_norm)) for use in deployed.smh_factors.plan.uses]
        for deployed in (from_program, from_module)
    ]
    assert described[0] == described[1]
    assert any(folded for *_, folded in described[0])
    with CountingOperators() as counted, torch.no_grad():
        from_program(torch.randn(2, 3, 6, 6))
    assert not any("batch_norm" in name for name in counted)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_and_batch_norm_follow_the_mode_again(training):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            return F.dropout(self.norm(self.conv(x)), 0.5, self.training)

    x = torch.randn(4, 3, 5, 5)
    gm = fxhash.transform(export(Net().train(training), (x,)), 0.9)
    assert gm.training is training
    gm.eval()
    mean = dict(gm.named_buffers())["norm.running_mean"]
    before = mean.clone()
    assert torch.equal(gm(x), gm(x))
    assert torch.equal(mean, before)
    gm.train()
    assert not torch.equal(gm(x), gm(x))
    assert not torch.equal(mean, before)


def test_a_dropout_that_is_always_on_stays_on():
    x = torch.randn(6, 16)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.sometimes = AlwaysDropout(), FunctionalDropout()

        def forward(self, x):
            return self.always(x), self.sometimes(x)

    gm = fxhash.transform(export(Both().eval(), (x,)), 0.9)
    assert not gm.training
    always, sometimes = gm(x)
    assert not torch.equal(gm(x)[0], always)
    assert torch.equal(gm(x)[1], sometimes)


class Nested(nn.Module):
    """Arguments and results that are built of others."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, batch, pair, scale=2.0, *, extra):
        x = self.linear(batch["x"]) * scale + pair[0] + extra[1]
        return {"x": x, "rest": [batch["y"], (x, None)]}, Pair(x + 1, pair[1])


def test_arguments_and_results_keep_their_structure():
    batch = {"x": torch.randn(3, 16), "y": torch.randn(2)}
    pair = (torch.randn(16), torch.randn(3))
    extra = Pair(torch.randn(3), torch.randn(16))
    program = export(Nested(), (batch, pair), {"extra": extra, "scale": 3.0})
    gm = fxhash.transform(program, 0.9)
    for model in (gm, fxhash.lower_for_deploy(gm), pickle.loads(pickle.dumps(gm))):
        # By name or by position, and dictionaries in any order.
        nested, both = model(dict(reversed(batch.items())), pair=pair, scale=3.0, extra=extra)
        assert isinstance(both, Pair)
        assert torch.equal(both.second, pair[1])
        assert torch.equal(nested["rest"][0], batch["y"])
        assert nested["rest"][1][1] is None
        assert torch.equal(both.first, nested["x"] + 1)
    with pytest.raises(ValueError, match="argument 'batch' is not built as it was"):
        gm({"x": batch["x"]}, pair, 3.0, extra)


def test_dynamic_shapes_stay_dynamic():
    program = export(
        ResidualConvNet().eval(), (torch.randn(2, 3, 6, 6),), dynamic_shapes={"x": {0: Dim("batch", min=1, max=64)}}
    )
    gm = fxhash.transform(program, 0.5)
    deployed = fxhash.lower_for_deploy(gm)
    for batch in (1, 7):
        assert_same_outputs(gm, deployed, torch.randn(batch, 3, 6, 6))


def test_a_strict_export_is_taken_too():
    x = torch.randn(2, 3, 6, 6)
    model = ResidualConvNet().eval()
    gm = fxhash.transform(torch.export.export(model, (x,), strict=True), 0.5, seed=0)
    assert_same_outputs(gm, fxhash.transform(model, 0.5, seed=0), x)


def test_a_module_of_a_program_is_taken_too():
    x = torch.randn(2, 3, 6, 6)
    module = export(ResidualConvNet().eval(), (x,)).module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    gm = fxhash.transform(module, 0.5)
    assert len(run(gm, x)) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_gradients_reach_every_factor():
    gm = fxhash.transform(export(ResidualConvNet(), (torch.randn(2, 3, 6, 6),)), 0.5)
    gm(torch.randn(2, 3, 6, 6)).square().mean().backward()
    assert all(left.grad.isfinite().all() and left.grad.any() for left in generator_of(gm).left)


def test_the_summary_says_so(capsys):
    fxhash.summary(fxhash.transform(export(ResidualConvNet(), (torch.randn(2, 3, 6, 6),)), 0.5), verbose=True)
    assert "captured: taken over from an exported program" in capsys.readouterr().out
