"""The deployed model is the trained model: the check that the precursor never had. And `materialize` likewise."""

from __future__ import annotations

import copy
import operator
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxhash
from fxhash.product import generate
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
    makes_weights = {generate, operator.add, "to", "smh_factors"}
    for node in nodes:
        if node.target is generate:
            following = nodes[nodes.index(node) + 1 :]
            first_user = next(other for other in following if other in node.users)
            between = following[: following.index(first_user)]
            assert all(other.target in makes_weights for other in between), f"{node} is generated too early"


def measured_peak(deployed, *inputs):
    """Most bytes of generated weights that exist at any time, seen from outside."""
    now = peak = 0

    def freed(size):
        nonlocal now
        now -= size

    def probe(*args):
        nonlocal now, peak
        weight = generate(*args)
        size = weight.untyped_storage().nbytes()
        now, peak = now + size, max(peak, now + size)
        weakref.finalize(weight, freed, size)
        return weight

    for node in deployed.graph.nodes:
        if node.target is generate:
            node.target = probe
    deployed.recompile()
    with torch.inference_mode():
        deployed(*inputs)
    assert now == 0, "a weight is still alive after the call"
    return peak


class ManyMatrices(nn.Module):
    """Weights that are used as matrices, so that they have to be generated; one of them twice, far apart."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(size, size) / size for size in [96] * 6)

    def forward(self, x):
        first, *others = self.weights
        x = x @ first
        for weight in others:
            x = torch.tanh(x @ weight.t())
        return x @ first


@pytest.mark.parametrize("compress", [0.1, 0.3])
def test_stated_peak_is_the_measured_peak(compress):
    deployed = fxhash.lower_for_deploy(fxhash.transform(ManyMatrices(), compress))
    plan = deployed.smh_factors.plan
    assert measured_peak(deployed, torch.zeros(1, 96)) == plan.peak_bytes
    assert plan.peak_bytes <= 2.1 * 96 * 96 * 4, "more than the one that is kept and the one in use"


@given(random_models())
def test_stated_peak_is_never_exceeded(case):
    model, x = case
    deployed = fxhash.lower_for_deploy(smallest_transform(model, 0.5))
    assert measured_peak(deployed, x) <= deployed.smh_factors.plan.peak_bytes


def test_layers_that_fit_build_no_weight():
    layers = [nn.Linear(128, 128), nn.ReLU(), nn.Conv1d(1, 8, 128), nn.Flatten()]
    gm = fxhash.transform(nn.Sequential(nn.Linear(128, 128), *layers), 0.1)
    plan = fxhash.lower_for_deploy(gm).smh_factors.plan
    assert [use.method for use in plan.uses][:2] == ["in turn", "in turn"]
    assert plan.peak_bytes < 128 * 128 * 4


def test_batch_norm_is_folded_into_the_factors():
    gm = fxhash.transform(ResidualConvNet(), 0.3, seed=0)
    gm(torch.randn(8, 3, 6, 6) * 3 + 1)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm)
    folded = [use.folded_norm for use in deployed.smh_factors.plan.uses if use.folded_norm]
    calls = [node.target for node in deployed.graph.nodes if node.op == "call_module"]
    assert ("norm" in calls) != bool(folded)
    assert_same_outputs(gm.eval(), deployed, torch.randn(2, 3, 6, 6))


class TwoNorms(nn.Module):
    """One convolution, called twice, with a norm of its own after each call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.second(self.conv(torch.relu(self.first(self.conv(x)))))


def test_a_module_called_twice_folds_each_norm_into_its_own_call():
    gm = fxhash.transform(TwoNorms(), 0.4, aspect=1, seed=0)
    gm(torch.randn(8, 8, 6, 6) * 2 + 1)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm)
    assert [use.folded_norm for use in deployed.smh_factors.plan.uses] == ["first", "second"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert_same_outputs(gm.eval(), deployed, torch.randn(2, 8, 6, 6))


def test_a_table_is_never_built_to_look_up_a_few_rows():
    model = nn.Sequential(nn.Embedding(50_000, 64), nn.Linear(64, 64))
    gm = fxhash.transform(model, 0.01, seed=0).eval()
    deployed = fxhash.lower_for_deploy(gm)
    tokens = torch.randint(0, 50_000, (100,))
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Largest(), torch.inference_mode():
        deployed(tokens)
    assert largest < 0.02 * 50_000 * 64
    assert_same_outputs(gm, deployed, tokens)


def test_threads_share_one_deployed_model():
    gm = fxhash.transform(ResidualConvNet(), 0.3, seed=0)
    deployed = fxhash.lower_for_deploy(gm)
    batches = [torch.randn(2, 3, 6, 6) for _ in range(40)]
    with torch.inference_mode():
        serial = [deployed(batch) for batch in batches]

    def call(batch):
        with torch.inference_mode():
            return deployed(batch)

    with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parallel = list(pool.map(call, batches))
    assert all(torch.equal(one, other) for one, other in zip(serial, parallel, strict=True))


@given(random_models(), st.floats(0, 1))
def test_memory_budgets_are_kept(case, share):
    model, x = case
    gm = smallest_transform(model, 0.5, seed=0)
    on_demand = fxhash.lower_for_deploy(gm).smh_factors.plan
    everything = sum({use.fqn: use.weight_bytes for use in on_demand.uses}.values())
    budget = on_demand.peak_bytes + int(share * everything)
    assume(budget > 0)
    deployed = fxhash.lower_for_deploy(gm, memory_budget=budget)
    plan = deployed.smh_factors.plan
    assert plan.peak_bytes <= budget
    kept = {use.fqn for use in plan.uses if use.method == "keep"}
    assert (not kept) == (plan == on_demand)
    assert_same_outputs(gm.eval(), deployed, x)
    stored = sum(deployed.smh_factors(fqn).numel() * deployed.smh_factors(fqn).element_size() for fqn in kept)
    assert measured_peak(deployed, x) + stored <= budget


def test_an_unlimited_budget_leaves_nothing_to_generate():
    gm = fxhash.transform(ManyMatrices(), 0.3)
    plan = fxhash.lower_for_deploy(gm, memory_budget="1GB").smh_factors.plan
    assert {use.method for use in plan.uses} == {"keep"}


def test_a_memory_budget_that_is_too_small_names_the_least():
    gm = fxhash.transform(ManyMatrices(), 0.3)
    with pytest.raises(fxhash.MemoryBudgetError, match="memory_budget=1,000 bytes is less than the") as caught:
        fxhash.lower_for_deploy(gm, memory_budget="1kB")
    least = caught.value.smallest_budget
    assert fxhash.lower_for_deploy(gm, memory_budget=least).smh_factors.plan.peak_bytes <= least
    with pytest.raises(fxhash.MemoryBudgetError):
        fxhash.lower_for_deploy(gm, memory_budget=least - 1)


@pytest.mark.parametrize("size", ["many", "8 parsecs", -1, "-1MB", None, True, ""])
def test_sizes_that_are_none(size):
    with pytest.raises(fxhash.PlanError, match="is no size"):
        fxhash.lower_for_deploy(fxhash.transform(ManyMatrices(), 0.3), memory_budget=size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_deployment_in_another_type(dtype):
    gm = fxhash.transform(ResidualConvNet(), 0.3, seed=0).eval()
    deployed = fxhash.lower_for_deploy(gm, dtype=dtype)
    x = torch.randn(2, 3, 6, 6)
    result = deployed(x.to(dtype))
    assert result.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float64 else 5e-2
    torch.testing.assert_close(result.float(), gm(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["ResidualConvNet", "TiedEmbedding", "ConvCalledTwice", "Buffers", "Conv1d"])
def test_compiler_and_export(name):
    gm, inputs = transformed(name)
    deployed = fxhash.lower_for_deploy(gm)
    with torch.no_grad():
        expected = deployed(*inputs)
        compiled = torch.compile(deployed, fullgraph=True, backend="eager")(*inputs)
        exported = torch.export.export(deployed, inputs).module()(*inputs)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)


def test_channels_last():
    gm = fxhash.transform(ResidualConvNet(), 0.3, seed=0).eval()
    x = torch.randn(2, 3, 6, 6)
    deployed = fxhash.lower_for_deploy(gm).to(memory_format=torch.channels_last)
    actual = deployed(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, gm(x), rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("function", [fxhash.lower_for_deploy, fxhash.materialize, fxhash.transform])
def test_a_deployed_model_is_the_end_of_the_line(function):
    deployed = fxhash.lower_for_deploy(fxhash.transform(ResidualConvNet(), 0.3))
    with pytest.raises(fxhash.TransformError, match=r"lowered already|transformed already"):
        function(deployed)


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
