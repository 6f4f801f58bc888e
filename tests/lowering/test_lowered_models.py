"""The deployed model is the trained model: the check that the precursor never had. And `materialize` likewise."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import fx, nn
from torch.profiler import ProfilerActivity, profile
from torch.torch_version import TorchVersion

import fxhash
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.convolution import depthwise
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.passes import lower
from fxhash.smh.arithmetic import generate, separable
from tests.helpers import LargestTensor, assert_same_outputs, generator_of, may_be_opaque, smallest_transform
from tests.models import MODELS, ResidualConvNet
from tests.strategies import random_models

pytestmark = may_be_opaque

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


@pytest.mark.parametrize("compress", [0.2, 0.5])
def test_separable_convolutions_of_many_channels_become_a_depthwise_and_a_pointwise_one(compress):
    torch.manual_seed(0)
    model, inputs = MODELS["SeparableConvolutions"]
    gm, x = fxhash.transform(model(), compress, seed=0).eval(), inputs()
    perturb(gm)
    separable_ones = [parameter.fqn for parameter in generator_of(gm).plan.hashed if parameter.kernels]
    assert separable_ones == ["conv.weight", "strided.weight", "twice.weight"]
    of_few_channels = fxhash.lower_for_deploy(gm)
    assert_same_outputs(gm, of_few_channels, *x)
    gm.requires_grad_(False)
    of_many = DeviceProfile(depthwise_cost=0.0, call_cost=0.0)
    split = lower(gm, plan_lowering(gm, options=LoweringOptions(of_many)))
    assert_same_outputs(gm, split, *x)
    assert_same_outputs(gm, lower(gm, plan_lowering(gm, budget=10**9, options=LoweringOptions(of_many))), *x)
    targets, other_targets = ([node.target for node in each.graph.nodes] for each in (split, of_few_channels))
    # One is called twice.
    assert targets.count(depthwise) == len(separable_ones) + 1
    assert separable not in targets
    assert other_targets.count(separable) == len(separable_ones)
    assert depthwise not in other_targets
    assert [use.folded_norm for use in split.smh_factors.plan.uses if use.fqn == "conv.weight"] == ["norm"]


def test_a_separable_weight_that_more_than_convolutions_need_is_materialized():
    gm, _ = transformed("SeparableConvolutionOfLargeMean")
    plan = generator_of(gm).plan
    assert [parameter.fqn for parameter in plan.hashed if parameter.kernels] == ["conv.weight", "constant.weight"]
    nodes = fxhash.lower_for_deploy(gm).graph.nodes
    assert sum(node.target is separable for node in nodes) == 2


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
    makes_weights = {generate, "to", "smh_factors", "smh_scratch", operator.getitem}
    for node in nodes:
        if node.target is generate:
            following = nodes[nodes.index(node) + 1 :]
            first_user = next(other for other in following if other in node.users)
            between = following[: following.index(first_user)]
            assert all(other.target in makes_weights for other in between), f"{node} is generated too early"


def measured_peak(deployed, *inputs):
    """Most bytes of generated weights at any time: new ones while they live, and the scratch slots that are used."""
    now = peak = 0
    scratch = {}

    def freed(size):
        nonlocal now
        now -= size

    def probe(function, *args, **kwargs):
        nonlocal now, peak
        weight = function(*args, **kwargs)
        storage = weight.untyped_storage()
        if kwargs.get("scratch") is not None:
            scratch[storage.data_ptr()] = storage.nbytes()
        else:
            now += storage.nbytes()
            weakref.finalize(weight, freed, storage.nbytes())
        peak = max(peak, now + sum(scratch.values()))
        return weight

    for node in deployed.graph.nodes:
        if node.target in (generate, separable):
            node.target = partial(probe, node.target)
            node.target.__name__ = "probe"
            node.target.__module__ = "tests"
    deployed.recompile()
    with torch.inference_mode():
        deployed(*inputs)
    assert now == 0, "a weight is still alive after the call"
    return peak


def allocated_peak(model, *inputs):
    """Most bytes that one call allocates, as torch's own profiler sees it."""
    # What earlier tests left behind would be freed, and counted, during the call.
    gc.collect()
    gc.disable()
    try:
        with (
            torch.inference_mode(),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled,
        ):
            model(*inputs)
    finally:
        gc.enable()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


class ManyMatrices(nn.Module):
    """Weights that are used as matrices, so that they have to be generated; one of them twice, far apart."""

    def __init__(self, size=96):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(size, size) / size for _ in range(6))

    def forward(self, x):
        first, *others = self.weights
        x = x @ first
        for weight in others:
            x = torch.tanh(x @ weight.t())
        return x @ first


class MatricesOfAllSizes(nn.Module):
    """Weights of many sizes that have to be generated, and live for longer or shorter."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(96, 128)
        self.weights = nn.ParameterList(torch.randn(128, 128 * (1 + index % 3)) / 64 for index in range(7))
        self.shifted = nn.Parameter(torch.ones(128, 200) + 0.1 * torch.randn(128, 200))

    def forward(self, x):
        first, *others = self.weights
        x, _ = self.lstm(x)
        for weight in others:
            x = torch.tanh(x @ weight @ (weight + 1).t())
        return x @ first + (x @ self.shifted).sum()


@pytest.mark.parametrize("compress", [0.1, 0.3])
@pytest.mark.parametrize("build", [lambda: ManyMatrices(192), MatricesOfAllSizes])
def test_stated_peak_is_what_a_memory_profiler_measures(build, compress):
    deployed = fxhash.lower_for_deploy(fxhash.transform(build(), compress))
    everything_cached = fxhash.lower_for_deploy(fxhash.transform(build(), compress), methods={"": "cache"})
    x = torch.zeros(1, 1, 96) if build is MatricesOfAllSizes else torch.zeros(1, 192)
    own_work = allocated_peak(everything_cached, x)
    stated = deployed.smh_factors.plan.peak_bytes
    assert allocated_peak(deployed, x) - own_work == pytest.approx(stated, rel=0.05)


def test_weights_share_scratch_slots():
    plan = fxhash.lower_for_deploy(fxhash.transform(ManyMatrices(), 0.1)).smh_factors.plan
    assert [use.slot for use in plan.uses] == [0, 1, 1, 1, 1, 1], "the first is used again at the end"
    assert plan.peak_bytes == sum(plan.slot_bytes) <= 2.1 * 96 * 96 * 4


@given(random_models())
def test_stated_peak_is_never_exceeded(case):
    model, x = case
    deployed = fxhash.lower_for_deploy(smallest_transform(model, 0.5))
    assert measured_peak(deployed, x) <= deployed.smh_factors.plan.peak_bytes


def test_row_aligned_layers_materialize_no_weight():
    layers = [nn.Linear(128, 128), nn.ReLU(), nn.Conv1d(1, 8, 128), nn.Flatten()]
    gm = fxhash.transform(nn.Sequential(nn.Linear(128, 128), *layers), 0.1)
    plan = fxhash.lower_for_deploy(gm).smh_factors.plan
    assert [use.method for use in plan.uses][:2] == ["factored", "factored"]
    assert plan.peak_bytes < 128 * 128 * 4


def test_batch_norm_is_folded_into_the_factors():
    gm = fxhash.transform(ResidualConvNet(), 0.3, seed=0)
    gm(torch.randn(8, 3, 6, 6) * 3 + 1)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm)
    assert [use.folded_norm for use in deployed.smh_factors.plan.uses if use.fqn == "stem.weight"] == ["norm"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert_same_outputs(gm.eval(), deployed, torch.randn(2, 3, 6, 6))


class TwoNorms(nn.Module):
    """One convolution, called twice, with a norm of its own after each call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.second(self.conv(torch.relu(self.first(self.conv(x)))))


class NormAndResidual(nn.Module):
    """A convolution whose output more than its norm reads."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


@pytest.mark.parametrize("methods", [{}, {"conv": "generate"}, {"conv": "cache"}])
def test_a_norm_is_not_folded_where_more_reads_its_convolution(methods):
    gm = fxhash.transform(NormAndResidual(), 0.4, seed=0)
    gm(torch.randn(8, 8, 6, 6) * 2 + 1)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm, methods=methods)
    assert {use.folded_norm for use in deployed.smh_factors.plan.uses} == {""}
    assert_same_outputs(gm.eval(), deployed, torch.randn(2, 8, 6, 6))


@pytest.mark.parametrize("method", ["generate", "cache"])
def test_a_weight_that_is_there_once_for_two_calls_folds_no_norm(method):
    gm = fxhash.transform(TwoNorms(), 0.4, seed=0)
    gm(torch.randn(8, 8, 6, 6) * 2 + 1)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm, methods={"conv": method})
    assert {use.folded_norm for use in deployed.smh_factors.plan.uses} == {""}
    assert_same_outputs(gm.eval(), deployed, torch.randn(2, 8, 6, 6))


def test_a_module_called_twice_folds_each_norm_into_its_own_call():
    gm = fxhash.transform(TwoNorms(), 0.4, aspect=1, seed=0)
    gm(torch.randn(8, 8, 6, 6) * 2 + 1)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm)
    assert [use.folded_norm for use in deployed.smh_factors.plan.uses] == ["first", "second"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert_same_outputs(gm.eval(), deployed, torch.randn(2, 8, 6, 6))


def test_a_table_is_never_materialized_to_look_up_a_few_rows():
    model = nn.Sequential(nn.Embedding(50_000, 64), nn.Linear(64, 64))
    gm = fxhash.transform(model, 0.01, seed=0).eval()
    deployed = fxhash.lower_for_deploy(gm)
    tokens = torch.randint(0, 50_000, (100,))
    with LargestTensor() as largest, torch.inference_mode():
        deployed(tokens)
    assert 0 < largest.numel < 0.02 * 50_000 * 64
    assert_same_outputs(gm, deployed, tokens)


class SlotUser(nn.Module):
    """Layers of every kind that takes scratch: a raw matrix, a grouped convolution, recurrence, an adaptive layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 32, 1)
        self.grouped = nn.Conv2d(32, 32, 3, groups=4)
        self.norm = nn.BatchNorm2d(32)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(32, 64))
        self.head = nn.Linear(64, 64)

    def forward(self, x):
        x = torch.relu(self.norm(self.grouped(self.conv(x))))
        x, _ = self.lstm(x.flatten(2).transpose(1, 2))
        return self.head(x @ self.matrix)


def slot_user(**options):
    torch.manual_seed(0)
    gm = fxhash.transform(SlotUser(), 0.4, seed=0)
    gm(3 * torch.randn(8, 4, 6, 6) + 1)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm, **{"memory_budget": 0, **options})
    if not options:
        assert {use.method for use in deployed.smh_factors.plan.uses} >= {"generate", "adaptive"}
        assert deployed.smh_factors.plan.slot_bytes
    return gm.eval(), deployed


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_threads_share_one_deployed_model(mode):
    _, deployed = slot_user()
    batches = [torch.randn(1 + index % 3, 4, 6, 6) for index in range(80)]

    def call(batch):
        with mode():
            return deployed(batch)

    serial = [call(batch) for batch in batches]
    with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parallel = list(pool.map(call, batches))
    assert all(torch.equal(one, other) for one, other in zip(serial, parallel, strict=True))


def test_a_model_that_is_called_inside_of_itself():
    _, deployed = slot_user()
    first, second = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 6, 6)
    inner = []

    class CallsAgain(fx.Interpreter):
        def call_function(self, target, args, kwargs):
            result = super().call_function(target, args, kwargs)
            inner.append(deployed(second))
            return result

    with torch.inference_mode():
        expected = deployed(first), deployed(second)
        outer = CallsAgain(deployed).run(first)
    assert torch.equal(outer, expected[0])
    assert inner
    assert all(torch.equal(one, expected[1]) for one in inner)


def test_scratch_works_in_all_modes_in_any_order():
    gm, deployed = slot_user()
    x = torch.randn(2, 4, 6, 6)
    expected = gm(x)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode, torch.no_grad):
        with mode():
            torch.testing.assert_close(deployed(x), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_inputs_pass_through_a_deployed_model():
    gm, deployed = slot_user()
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(gm(x).square().sum(), x)
    (actual,) = torch.autograd.grad(deployed(x).square().sum(), x)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


class ReturnsWeights(nn.Module):
    """Hands out views of its weights, which are the caller's from then on."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(40, 40) for _ in range(3))

    def forward(self, x):
        first, second, third = self.weights
        return x @ second, first.t(), third[:2]


class StoresWeights(nn.Module):
    """Can't be traced, and keeps a view of its weight as an attribute."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, 40))
        self.transposed = None

    def forward(self, x):
        if x.sum() > 0:
            x = x + 1
        if self.transposed is None:
            self.transposed = self.weight.t()
        return x @ self.transposed


def test_weights_that_are_returned_are_the_callers():
    deployed = fxhash.lower_for_deploy(fxhash.transform(ReturnsWeights(), 0.5))
    with torch.inference_mode():
        _, first, third = deployed(torch.ones(2, 40))
        first.fill_(7)
        third.fill_(8)
        deployed(torch.ones(2, 40))
    assert (first == 7).all()
    assert (third == 8).all()


def test_weights_that_a_module_stores_are_not_overwritten():
    model = nn.Sequential(StoresWeights(), nn.Linear(40, 40), StoresWeights(), nn.Linear(40, 40))
    gm = fxhash.transform(model, 0.5, seed=0)
    deployed = fxhash.lower_for_deploy(gm)
    x = torch.ones(2, 40)
    with torch.no_grad():
        expected = fxhash.materialize(gm)(x)
        for _ in range(3):
            torch.testing.assert_close(deployed(x), expected, rtol=1e-4, atol=1e-4)
    for name in ("0", "2"):
        stored = deployed.get_submodule(f"{name}.opaque_part").wrapped_module.transposed
        torch.testing.assert_close(stored.t(), fxhash.materialize(gm).get_parameter(f"{name}.weight").detach())


def test_copies_and_other_types_start_with_scratch_of_their_own():
    gm, deployed = slot_user()
    size = len(pickle.dumps(deployed))
    x = torch.randn(2, 4, 6, 6)
    with torch.inference_mode():
        deployed(x)
        assert len(pickle.dumps(deployed)) == size
        assert not copy.deepcopy(deployed).smh_scratch._idle
        torch.testing.assert_close(deployed.double()(x.double()).float(), gm(x), rtol=1e-4, atol=1e-4)


@given(random_models(), st.floats(0, 1))
def test_memory_budgets_are_met(case, share):
    model, x = case
    gm = smallest_transform(model, 0.5, seed=0)
    on_demand = fxhash.lower_for_deploy(gm, memory_budget=0).smh_factors.plan
    everything = sum({use.fqn: use.weight_bytes for use in on_demand.uses}.values())
    budget = on_demand.peak_bytes + int(share * everything)
    assume(budget > 0)
    deployed = fxhash.lower_for_deploy(gm, memory_budget=budget)
    plan = deployed.smh_factors.plan
    assert plan.peak_bytes <= budget
    cached = {use.key("weight") for use in plan.uses if use.method == "cache"}
    assert (not cached) == (plan == on_demand)
    assert_same_outputs(gm.eval(), deployed, x)
    stored = sum(deployed.smh_factors(key).nbytes for key in cached)
    assert stored == plan.cached_bytes
    assert measured_peak(deployed, x) + stored <= budget


@given(random_models())
def test_few_small_weights_are_cached_by_default(case):
    model, x = case
    gm = smallest_transform(model, 0.5, seed=0).eval()
    on_demand, default = (fxhash.lower_for_deploy(gm, memory_budget=budget) for budget in (0, None))
    plan = default.smh_factors.plan
    assert on_demand.smh_factors.plan.cached_bytes == 0
    assert plan.cached_bytes <= on_demand.smh_factors.plan.factor_bytes / 20
    assert_same_outputs(on_demand, default, x)


def test_a_small_head_beside_a_large_table_is_cached_where_it_saves_work():
    gm = fxhash.transform(TableAndHead(), 0.1, seed=0).eval()
    assert cached_of(fxhash.lower_for_deploy(gm)) == {"head.weight"}
    assert cached_of(fxhash.lower_for_deploy(gm, memory_budget=0)) == set()
    assert cached_of(fxhash.lower_for_deploy(gm, methods={"head": "generate"})) == set()
    assert cached_of(fxhash.lower_for_deploy(gm, device=fxhash.DeviceProfile.onnx_runtime())) == set()


class TableAndHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20_000, 32)
        self.head = nn.Linear(32, 40)

    def forward(self, indices):
        return self.head(self.table(indices))


def cached_of(deployed):
    return {use.fqn for use in deployed.smh_factors.plan.uses if use.method == "cache"}


@pytest.mark.parametrize("method", ["generate", "cache"])
def test_a_method_that_is_asked_for_is_taken(method):
    gm, deployed = slot_user(methods={"": method})
    assert {use.method for use in deployed.smh_factors.plan.uses} == {method}
    assert_same_outputs(gm, deployed, torch.randn(2, 4, 6, 6))


def test_methods_are_found_by_name_and_the_last_one_counts():
    gm, deployed = slot_user(methods={"conv|grouped": "cache", r"^conv\.": "factored", "head": "factored"})
    chosen = {use.fqn: use.method for use in deployed.smh_factors.plan.uses}
    assert (chosen["conv.weight"], chosen["grouped.weight"]) == ("factored", "cache")
    assert chosen["head.weight"] == "factored"
    assert chosen["matrix"] == "generate"
    assert_same_outputs(gm, deployed, torch.randn(2, 4, 6, 6))
    assert_same_outputs(gm, deployed, torch.randn(1, 4, 40, 40))


def test_a_memory_budget_leaves_the_methods_that_were_asked_for():
    _, deployed = slot_user(methods={"matrix": "generate"}, memory_budget="1GB")
    chosen = {use.fqn: use.method for use in deployed.smh_factors.plan.uses}
    assert chosen["matrix"] == "generate"
    assert chosen["lstm.weight_hh_l0"] == "cache"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"conv": "compile"}, "'compile' is no method: give one of 'factored', 'generate', 'cache'"),
        ({"(": "cache"}, "is not a regular expression"),
        ({"banana": "cache"}, "no hashed parameter has 'banana' in its name"),
        ({"matrix": "factored"}, "'matrix' can't be factored where 'matmul' uses it"),
        ({"grouped": "factored"}, r"'grouped\.weight' can't be factored where 'conv2d_1' uses it"),
    ],
)
def test_methods_that_are_impossible(methods, message):
    with pytest.raises(fxhash.PlanError, match=message):
        slot_user(methods=methods)


@pytest.mark.parametrize("methods", [{}, {"": "generate"}, {"": "cache"}])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("channels", "groups"), [(24, 24), (24, 2), (24, 1)])
def test_batch_norm_folds_whatever_the_method(channels, groups, shifted, methods):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, 3, groups=groups)
    if shifted:
        nn.init.normal_(conv.weight, mean=0.2, std=0.1)
    gm = fxhash.transform(nn.Sequential(conv, nn.BatchNorm2d(channels)), 0.5, seed=0)
    gm(3 * torch.randn(8, channels, 6, 6) + 1)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm, methods=methods)
    if methods:
        assert [use.folded_norm for use in deployed.smh_factors.plan.uses] == ["_1"]
    folded = {use.folded_norm for use in deployed.smh_factors.plan.uses} != {""}
    assert folded != any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert_same_outputs(gm.eval(), deployed, torch.randn(2, channels, 6, 6))


def test_an_unlimited_budget_leaves_nothing_to_generate():
    gm = fxhash.transform(ManyMatrices(), 0.3)
    plan = fxhash.lower_for_deploy(gm, memory_budget="1GB").smh_factors.plan
    assert {use.method for use in plan.uses} == {"cache"}
    enough = 6 * 96 * 96 * 4
    plan = fxhash.lower_for_deploy(gm, memory_budget=enough).smh_factors.plan
    assert {use.method for use in plan.uses} == {"cache"}
    assert plan.peak_bytes == enough


def test_a_memory_budget_that_is_too_small_names_the_least():
    gm = fxhash.transform(ManyMatrices(), 0.3)
    with pytest.raises(fxhash.MemoryBudgetError, match="memory_budget=1,000 bytes is less than the") as caught:
        fxhash.lower_for_deploy(gm, memory_budget="1kB")
    least = caught.value.smallest_budget
    assert fxhash.lower_for_deploy(gm, memory_budget=least).smh_factors.plan.peak_bytes <= least
    with pytest.raises(fxhash.MemoryBudgetError):
        fxhash.lower_for_deploy(gm, memory_budget=least - 1)


@pytest.mark.parametrize("size", ["many", "8 parsecs", -1, "-1MB", True, ""])
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


def needs_compiler_of(version):
    """For parts whose code a compiler has to follow, which those of older versions of torch can't."""
    return pytest.mark.skipif(
        TorchVersion(torch.__version__) < version, reason=f"needs the compiler of torch {version}"
    )


COMPILED = [
    "ResidualConvNet",
    "TiedEmbedding",
    "ConvCalledTwice",
    "Buffers",
    "Conv1d",
    pytest.param("Attention", marks=needs_compiler_of("2.11")),
    pytest.param("LSTM", marks=needs_compiler_of("2.14")),
    "WeightNorm",
]


@pytest.mark.parametrize("name", COMPILED)
def test_compiler_and_export(name):
    gm, inputs = transformed(name)
    deployed = fxhash.lower_for_deploy(gm)
    # Whole recurrent layers are compiled only where one asks for it, also those of the original model.
    with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=True):
        expected = deployed(*inputs)
        compiled = torch.compile(deployed, fullgraph=True, backend="eager")(*inputs)
        exported = torch.export.export(deployed, inputs)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported.module()(*inputs), expected)
    weights = {parameter.numel() for parameter in deployed.parameters()}
    assert {tensor.numel() for tensor in exported.state_dict.values()} <= weights | {
        buffer.numel() for buffer in deployed.buffers()
    }, "the exported program holds a generated weight"


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"methods": {"": "generate"}}, {"memory_budget": "1GB"}])
def test_compiled_to_machine_code(options):
    gm = fxhash.transform(ResidualConvNet(), 0.3, seed=0).eval()
    deployed = fxhash.lower_for_deploy(gm, **options)
    x = torch.randn(2, 3, 6, 6)
    with torch.inference_mode():
        compiled = torch.compile(deployed, fullgraph=True)(x)
        torch.testing.assert_close(compiled, gm(x), rtol=1e-4, atol=1e-5)


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


class Cache:
    tensors: dict[str, list[torch.Tensor]]


def test_after_a_call_that_left_activations_behind():
    """Tensors with a history refuse to be copied, also where an object of the model's own holds them."""

    class KeepsCache(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.cache = Cache()

        def forward(self, x):
            self.cache.tensors = {"all": [self.linear(x)]}
            return self.cache.tensors["all"][0] if x.sum() > 0 else x

    gm = fxhash.transform(KeepsCache(), 0.9)
    x = torch.rand(3, 16)
    gm(x)
    assert_same_outputs(gm, fxhash.lower_for_deploy(gm), x)
