"""The deployed model is the trained model: the check that the precursor never had. And `materialize` likewise."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from hypothesis import given
from torch import nn

import fxhash
from tests.helpers import assert_same_outputs, generator_of, smallest_transform
from tests.models import MODELS, ResidualConvNet
from tests.strategies import random_models

every_model = pytest.mark.parametrize("name", MODELS)


def transformed(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]
    gm = smallest_transform(model(), 0.5, seed=0)
    perturb(gm)
    return gm, inputs()


def perturb(gm):
    """Move everything that is trained, as training would: a fresh model's biases and norms are zeros and ones."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in gm.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


@given(random_models())
def test_deployed_equals_transformed(case):
    model, x = case
    gm = smallest_transform(model, 0.5, seed=0)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm)
    assert gm.training == model.training, "lowering changed the mode of its input"
    assert not deployed.training
    assert_same_outputs(gm.eval(), deployed, x)


@every_model
def test_deployed_equals_transformed_for(name):
    gm, inputs = transformed(name)
    deployed = fxhash.lower_for_deploy(gm)
    assert_same_outputs(gm.eval(), deployed, *inputs)
    assert_same_outputs(gm, pickle.loads(pickle.dumps(deployed)), *inputs)
    assert_same_outputs(gm, copy.deepcopy(deployed), *inputs)


@every_model
def test_materialized_equals_transformed_for(name):
    gm, inputs = transformed(name)
    dense = fxhash.materialize(gm)
    assert not any(isinstance(module, fxhash.SMHGenerator) for module in dense.modules())
    assert_same_outputs(gm, dense, *inputs)
    assert_same_outputs(gm.eval(), dense.eval(), *inputs)
    assert_same_outputs(gm, fxhash.materialize(fxhash.lower_for_deploy(gm)).eval(), *inputs)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"StarArguments"}))
def test_materialized_state_dict_fits_the_original(name):
    gm, inputs = transformed(name)
    dense = fxhash.materialize(gm)
    torch.manual_seed(0)
    original = MODELS[name][0]().train(dense.training)
    missing, unexpected = original.load_state_dict(dense.state_dict(), strict=False)
    plan = generator_of(gm).plan
    aliases = {alias for parameter in plan.parameters for alias in parameter.aliases}
    unread = {"temporary", "calls", *plan.unused} | {name for name in missing if "num_batches" in name}
    assert not unexpected
    assert not set(missing) - aliases - unread
    for parameter in plan.parameters:
        for alias in parameter.aliases:
            owner, _, attribute = alias.rpartition(".")
            setattr(original.get_submodule(owner), attribute, original.get_parameter(parameter.fqn))
    assert_same_outputs(dense, original, *inputs)


@every_model
def test_each_weight_is_generated_right_before_its_first_use(name):
    deployed = fxhash.lower_for_deploy(transformed(name)[0])
    nodes = list(deployed.graph.nodes)
    generated = [node for node in nodes if node.target == "smh_generator"]
    assert len(generated) == len(generator_of(deployed).plan.hashed)
    for node in generated:
        following = nodes[nodes.index(node) + 1 :]
        first_user = next(other for other in following if other in node.users)
        between = following[: following.index(first_user)]
        assert all(other in generated for other in between), f"{node} is generated too early"


def test_a_weight_is_freed_after_its_last_use():
    """With every weight of equal size, no more than two can be alive: the one in use and the one being made."""
    layers = [nn.Linear(128, 128, bias=False) for _ in range(20)]
    gm = fxhash.transform(nn.Sequential(*layers), 0.05)
    alive, peak = set(), 0

    def count(module, arguments, weight):
        nonlocal peak
        (name,) = arguments
        alive.add(name)
        weakref.finalize(weight, alive.discard, name)
        peak = max(peak, len(alive))

    deployed = fxhash.lower_for_deploy(gm)
    deployed.smh_generator.register_forward_hook(count)
    deployed(torch.zeros(1, 128))
    assert 1 <= peak <= 2
    assert not alive


def test_deployed_needs_no_gradient_and_shares_nothing():
    gm = fxhash.transform(ResidualConvNet(), 0.3)
    deployed = fxhash.lower_for_deploy(gm)
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    assert all(parameter.requires_grad for parameter in gm.parameters())
    theirs = {parameter.data_ptr() for parameter in gm.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in deployed.parameters()}
    assert deployed(torch.randn(2, 3, 6, 6)).grad_fn is None


def test_materialized_trains_on():
    gm = fxhash.transform(ResidualConvNet(), 0.3)
    dense = fxhash.materialize(gm)
    dense(torch.randn(4, 3, 6, 6)).sum().backward()
    assert dense.get_parameter("stem.weight").grad.abs().sum() > 0


@pytest.mark.parametrize("function", [fxhash.lower_for_deploy, fxhash.materialize])
def test_only_transformed_models(function):
    for model in (nn.Linear(3, 3), torch.fx.symbolic_trace(nn.Linear(3, 3)), "gm"):
        with pytest.raises(fxhash.TransformError, match=r"expected the result of fxhash\.transform or fxhash\.load"):
            function(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversion_after_the_transformation(dtype):
    gm = fxhash.transform(ResidualConvNet(), 0.3, seed=0).to(dtype).eval()
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    deployed = fxhash.lower_for_deploy(gm)
    assert deployed(x).dtype == dtype
    tolerance = {torch.float64: 1e-6}.get(dtype, 5e-2)
    torch.testing.assert_close(gm(x), deployed(x), rtol=tolerance, atol=tolerance)
