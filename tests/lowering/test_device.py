"""Profiles of devices: stored, measured, and what they decide."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxhash
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.convolution import depthwise
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.lowering.positions import output_positions
from fxhash.lowering.splitting import is_faster_split
from fxhash.smh.parameter_plan import ParameterPlan

costs = st.floats(0, 1e6)


@given(st.builds(DeviceProfile, costs, costs, costs, st.booleans(), costs, st.booleans()))
def test_a_profile_can_be_stored(profile):
    assert DeviceProfile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"call_cost": "much"}, "call_cost of a device profile is 'much': give a number that is not negative"),
        ({"call_cost": -1}, "call_cost of a device profile is -1: give a number"),
        ({"depthwise_cost": float("nan")}, "depthwise_cost of a device profile is nan"),
        ({"generates_once": 1}, "generates_once of a device profile is 1: give true or false"),
        ({"speed": 1}, "is no device profile: it has thin_product_cost, .* no others"),
    ],
)
def test_what_is_no_profile_is_refused(change, message):
    with pytest.raises(fxhash.PlanError, match=message):
        DeviceProfile.from_json(json.dumps(json.loads(DeviceProfile().to_json()) | change))
    for text in ("no JSON", "[]", None):
        with pytest.raises(fxhash.PlanError, match="is no device profile"):
            DeviceProfile.from_json(text)


def test_this_machine_can_be_measured():
    state = torch.random.get_rng_state()
    profile = fxhash.profile_device(seconds=0.01)
    assert min(profile.thin_product_cost, profile.depthwise_cost, profile.call_cost) > 0
    assert profile.shares_scratch
    assert not profile.generates_once
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(fxhash.PlanError, match="nowhere"):
        fxhash.profile_device(device="nowhere")


def separable(channels, rank=8):
    return ParameterPlan("weight", (channels, channels, 3, 3), "float32", rank=rank, kernels=2)


def test_a_convolution_is_split_where_the_costs_say_so():
    cheap, dear = DeviceProfile(depthwise_cost=1.0, call_cost=1e6), DeviceProfile(depthwise_cost=100.0)
    assert is_faster_split(separable(64), 512, cheap)
    assert not is_faster_split(separable(64), 512, dear)
    assert is_faster_split(separable(2048), 512, dear)
    # Few pixels don't pay for more calls, unless the weight would be generated for them.
    once = DeviceProfile(depthwise_cost=1.0, call_cost=1e6, generates_once=True)
    assert not is_faster_split(separable(64), 512, once, positions=4)
    assert is_faster_split(separable(64), 512, once, positions=10_000)
    assert is_faster_split(separable(64, rank=500), 512, cheap, positions=1)
    assert not is_faster_split(separable(64), 512, cheap, positions=1)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(64, 64, 3, stride=2), nn.Conv2d(64, 64, 3)

    def forward(self, x, scale=1.0):
        return self.second(self.first(x) * scale)


def test_sizes_of_example_inputs_decide():
    gm = fxhash.transform(Nested(), 0.2, seed=0).eval()
    x = torch.randn(2, 64, 9, 9)
    assert output_positions(gm, (x,), {}) == {"conv2d": 2 * 4 * 4, "conv2d_1": 2 * 2 * 2}
    assert output_positions(gm, (), {"x": x, "scale": 2.0}) == output_positions(gm, (x,), {})
    device = DeviceProfile(depthwise_cost=1.0, call_cost=1e6, generates_once=True)

    def splits(**options):
        lowered = fxhash.lower_for_deploy(gm, device=device, **options)
        torch.testing.assert_close(lowered(x), gm(x), rtol=1e-3, atol=1e-4)
        return sum(node.target is depthwise for node in lowered.graph.nodes)

    assert splits() == 2
    assert splits(example_inputs=(x,)) == 0
    assert splits(example_inputs=(torch.randn(64, 64, 33, 33),)) == 2


def test_sizes_are_found_in_the_type_and_mode_of_the_result():
    gm = fxhash.transform(nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64)), 0.2, seed=0)
    device = DeviceProfile(depthwise_cost=1.0, call_cost=1e6, generates_once=True)
    x = torch.randn(1, 64, 3, 3, dtype=torch.bfloat16)
    state = torch.random.get_rng_state()
    lowered = fxhash.lower_for_deploy(gm, device=device, dtype="bfloat16", example_inputs=(x,))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(node.target is depthwise for node in lowered.graph.nodes)


def test_a_runtime_that_generates_once_has_no_adaptive_layers():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1024), nn.Linear(1024, 64))
    gm = fxhash.transform(model, 0.3, seed=0).eval().requires_grad_(False)
    methods = [str(use.method) for use in plan_lowering(gm).uses]
    assert "adaptive" in methods, "the case is not covered"
    of_runtime = [
        str(use.method) for use in plan_lowering(gm, options=LoweringOptions(DeviceProfile.onnx_runtime())).uses
    ]
    assert of_runtime == [each.replace("adaptive", "generate") for each in methods]
    lowered = fxhash.lower_for_deploy(gm, device=DeviceProfile.onnx_runtime())
    x = torch.randn(3, 64)
    with torch.inference_mode():
        torch.testing.assert_close(lowered(x), gm(x), rtol=1e-4, atol=1e-5)


def test_a_device_that_is_no_profile_is_refused():
    gm = fxhash.transform(nn.Linear(64, 64), 0.5, seed=0)
    with pytest.raises(fxhash.PlanError, match="device='cpu' is no DeviceProfile: give that"):
        fxhash.lower_for_deploy(gm, device="cpu")
