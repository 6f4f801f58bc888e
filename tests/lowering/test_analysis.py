"""The plan of a lowered model: it says all, and making it changes nothing."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fxhash
from fxhash.capture.opaque import OpaqueModule
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.factor_store import find_factor_store
from fxhash.lowering.factored_modules import GeneratesParameters, LoweredLayer
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.lowering.method import Method
from fxhash.lowering.readers import asks_for_type, generator_calls
from fxhash.passes import LOWERING, lower
from tests.helpers import assert_same_outputs, may_be_opaque
from tests.lowering.test_factored_modules import Assorted
from tests.lowering.test_lowered_models import ManyMatrices, SlotUser, measured_peak, transformed
from tests.models import MODELS

pytestmark = may_be_opaque

every_model = pytest.mark.parametrize("name", MODELS)
# Splits every separable convolution, whatever its channels.
OF_FEW_CHANNELS = DeviceProfile(depthwise_cost=0.0, call_cost=0.0)


class OneSeparable(nn.Sequential):
    """A separable convolution alone."""

    def __init__(self):
        super().__init__(nn.Conv2d(16, 96, 3, padding=1))


def evaluated(name):
    gm, inputs = transformed(name)
    return gm.eval().requires_grad_(False), inputs


@every_model
def test_planning_leaves_the_graph_as_it_was(name):
    gm, _ = evaluated(name)
    nodes = list(gm.graph.nodes)
    before = [(node.name, node.target, node.args, node.kwargs, dict(node.meta)) for node in nodes]
    code, modules = gm.code, dict(gm.named_modules())
    state = {key: tensor.clone() for key, tensor in gm.state_dict().items()}
    plan_lowering(gm, budget=10**9)
    assert list(gm.graph.nodes) == nodes
    assert [(node.name, node.target, node.args, node.kwargs, dict(node.meta)) for node in nodes] == before
    assert gm.code == code
    assert dict(gm.named_modules()) == modules
    assert all(torch.equal(tensor, state[key]) for key, tensor in gm.state_dict().items())


@every_model
@pytest.mark.parametrize("budget", [0, 10**9])
def test_uses_are_the_generated_weights(name, budget):
    gm, _ = evaluated(name)
    plan = plan_lowering(gm, budget=budget)
    planned = Counter((use.weight, reader) for use in plan.uses for reader in use.readers)
    read = Counter(
        (call.name, reader.name)
        for call in generator_calls(gm)
        for reader in call.users
        if not asks_for_type(call, reader)
    )
    assert planned == read
    assert {use.weight: use.fqn for use in plan.uses} == {call.name: call.args[0] for call in generator_calls(gm)}
    for use in plan.uses:
        assert use.node == use.readers[0]
        first, last = use.live
        assert first <= last


@every_model
@pytest.mark.parametrize("options", [{}, {"budget": 10**9}, {"options": LoweringOptions(OF_FEW_CHANNELS)}])
def test_every_prefix_of_the_passes_gives_equal_outputs(name, options):
    gm, inputs = evaluated(name)
    plan = plan_lowering(gm, **options)
    code = gm.code
    for count in range(len(LOWERING) + 1):
        lowered = lower(gm, plan, LOWERING[:count])
        assert_same_outputs(gm, lowered, *inputs)
        assert not any("fxhash.use" in node.meta for node in lowered.graph.nodes)
    assert not generator_calls(lowered)
    assert gm.code == code


@every_model
@pytest.mark.parametrize("options", [{}, {"budget": 10**9}, {"options": LoweringOptions(OF_FEW_CHANNELS)}])
def test_what_is_stored_is_what_the_plan_says_and_what_is_read(name, options):
    gm, _ = evaluated(name)
    plan = plan_lowering(gm, **options)
    lowered = lower(gm, plan)
    store = find_factor_store(lowered)
    assert sum(tensor.nbytes for tensor in store.parameters()) == plan.factor_bytes + plan.cached_bytes
    (path,) = [path for path, module in lowered.named_children() if module is store]
    read = {node.args[0] for node in lowered.graph.nodes if node.target == path and node.args}
    for called in [module for module in lowered.modules() if isinstance(module, OpaqueModule)]:
        for module in called.wrapped_module.modules():
            sources = [module.source] if isinstance(module, LoweredLayer) else []
            sources += module.sources.values() if isinstance(module, GeneratesParameters) else []
            read |= {key for source in sources for key in (source.key, source.shift_key) if key}
    assert read == {use.key(each.role) for use in plan.uses for each in use.stored}


@pytest.mark.parametrize(
    ("build", "shape"),
    [(ManyMatrices, (1, 96)), (SlotUser, (2, 4, 6, 6)), (OneSeparable, (2, 16, 6, 6))],
)
def test_stated_peak_is_the_measured_one(build, shape):
    gm = fxhash.transform(build(), 0.15, seed=0)
    deployed = fxhash.lower_for_deploy(gm, methods={"": "generate"})
    assert (build is OneSeparable) == any(parameter.kernels for parameter in gm.smh_generator.plan.hashed)
    assert measured_peak(deployed, torch.randn(shape)) == deployed.smh_factors.plan.peak_bytes


def test_a_device_that_shares_no_scratch_has_no_slots():
    gm = fxhash.transform(ManyMatrices(), 0.1, seed=0).eval().requires_grad_(False)
    plan = plan_lowering(gm, options=LoweringOptions(DeviceProfile(shares_scratch=False)))
    assert plan.slot_bytes == ()
    assert {use.slot for use in plan.uses} == {None}
    assert not any("smh_scratch" in str(node.target) for node in lower(gm, plan).graph.nodes)


def test_a_thin_product_that_costs_more_is_cached_first():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, bias=False))
    gm = fxhash.transform(model, 0.3, seed=0).eval().requires_grad_(False)
    requested = {"0.weight": Method.FACTORED, "1.weight": Method.FACTORED}
    assert {use.method for use in plan_lowering(gm, requested).uses} == {Method.FACTORED}
    free, dear = (DeviceProfile(thin_product_cost=cost) for cost in (0.01, 100.0))
    methods = [
        {use.method for use in plan_lowering(gm, budget=10**9, options=LoweringOptions(device)).uses}
        for device in (free, dear)
    ]
    assert methods == [{Method.FACTORED}, {Method.CACHE}]


def test_a_weight_that_is_also_an_argument_of_its_opaque_module_is_generated():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x, weight):
            return self.layer(x) if x.sum() > 0 else x @ weight

    class PassesWeight(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Branches()

        def forward(self, x):
            return self.inner(x, self.inner.layer.weight)

    gm = fxhash.transform(PassesWeight(), 0.3, seed=0)
    deployed = fxhash.lower_for_deploy(gm)
    assert [(use.method, use.module) for use in deployed.smh_factors.plan.uses] == [(Method.GENERATE, None)]
    for x in (torch.ones(2, 32), -torch.ones(2, 32)):
        assert_same_outputs(gm.eval(), deployed, x)


def test_generating_a_separable_weight_counts_both_of_its_products():
    """The one that makes its slice, and the one with its kernels, as torch counts them."""
    gm = fxhash.transform(OneSeparable(), 0.15, seed=0).eval()
    deployed = fxhash.lower_for_deploy(gm, device=DeviceProfile(depthwise_cost=1000.0))
    (use,) = deployed.smh_factors.plan.uses
    assert use.parameter.kernels
    assert not use.split
    x = torch.randn(1, 16, 6, 6)
    with FlopCounterMode(display=False) as deployed_work, torch.inference_mode():
        deployed(x)
    with FlopCounterMode(display=False) as dense_work, torch.inference_mode():
        OneSeparable()(x)
    generated = (deployed_work.get_total_flops() - dense_work.get_total_flops()) // 2
    # The last row of the slice is generated to its end.
    rows, numel = gm.smh_generator.plan.rows_of(use.parameter), use.parameter.slice_numel
    cut_off = (rows * gm.smh_generator.plan.layout.cols - numel) * use.parameter.full_rank
    assert use.costs.generate == generated - cut_off


def test_a_model_that_is_not_transformed_can_not_be_planned():
    with pytest.raises(fxhash.TransformError, match="generates no weight"):
        plan_lowering(fxhash.trace(nn.Linear(3, 3)))


def test_attention_nested_in_an_opaque_module_is_never_adaptive():
    """It multiplies by its matrices as often as it likes: where the factors are more work, it gets the weight."""
    gm = fxhash.transform(Assorted(), 0.9, seed=0, exclude="^wide").eval()
    deployed = fxhash.lower_for_deploy(gm, memory_budget=0)
    uses = [use for use in deployed.smh_factors.plan.uses if use.fqn.startswith("attention.")]
    assert {use.costs.method for use in uses} == {Method.ADAPTIVE}
    assert {use.method for use in uses} == {Method.GENERATE}
    assert_same_outputs(gm, deployed, torch.randint(0, 50, (2, 9)))


def test_what_a_nested_module_can_not_factor_is_refused():
    gm = fxhash.transform(Assorted(), 0.3, seed=0)
    with pytest.raises(fxhash.PlanError, match=r"'experts\.first' can't be factored where 'opaque_part' uses it"):
        fxhash.lower_for_deploy(gm, methods={"experts.first": "factored"})
