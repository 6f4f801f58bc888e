"""Models on the meta device: planned without memory, and started on a device one module at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxhash
from benchmarks.decoder import Decoder
from fxhash.smh.plan import CompressionPlan
from tests.helpers import LargestTensor, assert_same_outputs, generator_of, may_be_opaque, run
from tests.models import MODELS

pytestmark = may_be_opaque

# Values outside of a layer that torch knows how to start.
WITHOUT_START = {
    "RawParameters",
    "CountsCalls",
    "InPlaceBuffer",
    "Buffers",
    "ReadsShapes",
    "WeightNorm",
    "HookedWeightNorm",
}


def on_meta(build):
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in WITHOUT_START])
def test_started_on_a_device(name):
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    real, example = build().eval(), inputs()
    compress = 0.9
    gm = fxhash.transform(on_meta(build).eval(), compress, seed=0, device="cpu")
    assert not any(tensor.is_meta for tensor in gm.state_dict().values())
    for expected, actual in zip(run(real, *example), run(gm, *example), strict=True):
        assert expected.shape == actual.shape
        assert actual.isfinite().all()
    of_real = fxhash.transform(real, compress, seed=0)
    assert generator_of(of_real).plan == generator_of(gm).plan
    for parameter in generator_of(gm).plan.hashed:
        expected, actual = generator_of(of_real)(parameter.fqn), generator_of(gm)(parameter.fqn)
        if parameter.numel > 100:
            # Two draws from the same distribution.
            assert actual.std().item() == pytest.approx(expected.std().item(), rel=0.4)
    assert_same_outputs(gm, fxhash.lower_for_deploy(gm), *example)


def test_what_stays_dense_starts_as_its_module_starts_it():
    def build():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 8))

    gm = fxhash.transform(on_meta(build), 0.9, device="cpu")
    state = gm.state_dict()
    assert torch.equal(state["1.weight"], torch.ones(8))
    assert torch.equal(state["1.running_var"], torch.ones(8))
    assert state["1.num_batches_tracked"].item() == 0
    assert 0 < state["3.bias"].abs().max() <= 8**-0.5
    assert all(parameter.requires_grad for parameter in gm.parameters())


def test_no_more_memory_than_one_module_at_a_time():
    model = on_meta(lambda: Decoder(500, 64, 128, heads=4, layers=3))
    with LargestTensor() as largest:
        gm = fxhash.transform(model, 0.05, seed=0, device="cpu")
    assert largest.numel == 500 * 64
    deployed = fxhash.lower_for_deploy(gm)
    tokens = torch.randint(0, 500, (1, 1))
    with LargestTensor() as largest, torch.inference_mode():
        deployed(tokens)
    largest_factor = max(parameter.numel() for parameter in deployed.parameters())
    assert largest.numel <= max(largest_factor, 500)
    assert_same_outputs(gm.eval(), deployed, torch.randint(0, 500, (2, 7)))


def test_a_value_that_nothing_starts_is_named():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.token = nn.Parameter(torch.randn(16))

        def forward(self, x):
            return self.linear(x) + self.token

    with pytest.raises(fxhash.TransformError, match=r"'token' is on the meta device, and Raw has no reset_parameters"):
        fxhash.transform(on_meta(Raw), 0.9, device="cpu")

    class Started(Raw):
        def reset_parameters(self):
            nn.init.constant_(self.token, 3.0)

    gm = fxhash.transform(on_meta(Started), 0.9, device="cpu")
    assert torch.equal(gm.token, torch.full((16,), 3.0))

    class Forgetful(Raw):
        def reset_parameters(self):
            pass

    with pytest.raises(fxhash.TransformError, match=r"'token' is on the meta device"):
        fxhash.transform(on_meta(Forgetful), 0.9, device="cpu")


def test_values_of_the_original_that_are_real_are_left_untouched():
    """Whoever uses the model in another thread sees nothing of what `reset_parameters` does to its replicas."""

    class Child(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((16,), 7.0))
            self.register_buffer("mean", torch.full((16,), 7.0))
            self.resets = 0

        def reset_parameters(self):
            nn.init.ones_(self.scale)
            self.mean.zero_()
            self.resets += 1

        def forward(self, x):
            return x * self.scale + self.mean

    class Mixed(nn.Linear):
        def __init__(self):
            super().__init__(16, 16)
            self.child = Child()
            self.weight = nn.Parameter(torch.empty(16, 16, device="meta"))

        def reset_parameters(self):
            super().reset_parameters()
            if hasattr(self, "child"):
                self.child.reset_parameters()

        def forward(self, x):
            return self.child(super().forward(x))

    model = Mixed()
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gm = fxhash.transform(model, 0.9, device="cpu")
    assert model.weight.is_meta
    assert model.child.resets == 0
    for name in ("bias", "child.scale", "child.mean"):
        assert torch.equal(model.state_dict()[name], values[name])
        assert torch.equal(gm.state_dict()[name], values[name])


@pytest.mark.parametrize(
    ("persistent", "message"),
    [(True, "'mask' is on the meta device"), (False, r"a constant tensor of shape \(16,\), say a buffer that is not")],
)
def test_a_buffer_that_nothing_starts_is_named(persistent, message):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.register_buffer("mask", torch.ones(16, dtype=torch.bool), persistent)

        def forward(self, x):
            return self.linear(x) * self.mask

    with pytest.raises(fxhash.TransformError, match=message):
        fxhash.transform(on_meta(Masked), 0.9, device="cpu")


def test_a_real_model_goes_to_the_device_that_is_named():
    gm = fxhash.transform(nn.Linear(16, 16), 0.9, device="meta")
    assert all(parameter.is_meta for parameter in gm.parameters())


def test_a_model_without_values_is_not_deployed():
    gm = fxhash.transform(on_meta(lambda: nn.Linear(16, 16)), 0.9)
    for function in (fxhash.lower_for_deploy, fxhash.materialize):
        with pytest.raises(fxhash.TransformError, match="has no values yet"):
            function(gm)


def test_more_weights_than_32_bits_count():
    """Places and products of parameters past 2**31 weights; the values of a table's last rows are right."""
    model = on_meta(lambda: nn.Sequential(nn.Embedding(40_000_000, 64), nn.Linear(64, 50_000_000, bias=False)))
    gm = fxhash.transform(model, 1e-4)
    plan = generator_of(gm).plan
    assert plan.hashed_before == 40_000_000 * 64 + 64 * 50_000_000 > 2**32
    assert plan.trainable_after <= plan.hashed_before * 1e-4
    assert CompressionPlan.from_json(plan.to_json()) == plan
    first, second = plan.hashed
    assert second.first_row == plan.rows_of(first)
    assert (second.first_row + plan.rows_of(second) - 1) * plan.layout.cols > 2**32

    gm.to_empty(device="cpu")
    generator = generator_of(gm)
    with torch.no_grad():
        for tensor in (*generator.left, *generator.more_left, generator.right):
            tensor.normal_()
        generator.log_scales.zero_()
        generator.shifts.zero_()
    lookup = fxhash.lower_for_deploy(fx_of_first_layer(gm))
    indices = torch.tensor([0, 39_999_999, 35_000_000])
    rows = []
    for index in indices.tolist():
        elements = range(index * 64, (index + 1) * 64)
        left = generator.scaled_left("0.weight")
        rows.append(
            torch.stack(
                [left[e // plan.layout.cols] @ generator.right[: left.shape[1], e % plan.layout.cols] for e in elements]
            )
        )
    with torch.inference_mode():
        torch.testing.assert_close(lookup(indices), torch.stack(rows))


def fx_of_first_layer(gm):
    """The same graph, but it returns what its embedding gives."""
    graph = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in gm.graph.nodes:
        copied[node] = graph.node_copy(node, copied.__getitem__)
        if node.target is F.embedding:
            graph.output(copied[node])
            break
    return torch.fx.GraphModule(gm, graph)
