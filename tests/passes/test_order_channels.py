"""Images whose channels come last in memory: where they do, and that nobody outside sees anything of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fxhash
from fxhash.lowering.memory_format import channels_last, has_channels_last
from fxhash.lowering.separable import separable_conv
from tests.helpers import assert_same_outputs


class Sum(nn.Module):
    """What a module returns and what it was given, which it may have changed in place by then."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + x


class Doubled(nn.Module):
    """Changes what it is given in place, and branches on its values, so that it can't be traced."""

    def forward(self, x):
        return x.mul_(2) if x.sum() < 1e30 else x


class ChangesWhatAModuleReturns(nn.Module):
    """Which is a view of what it was given, of an activation."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout(0.0)

    def forward(self, x):
        pixels = self.inner(x.flatten(2))
        pixels += 1
        return torch.relu(x)


def view_before_a_change(x):
    pixels = x.flatten(2)
    x = F.relu(x, inplace=True)
    return x + pixels.unflatten(2, (8, 8)) * 2


# What stands between two convolutions of 64 channels, as a user might write it.
BETWEEN = {
    "nothing": lambda x: x,
    "a view": lambda x: x.view(len(x), -1).view(x.shape),
    "an activation in place, whose result nobody reads, and a view": lambda x: (
        F.relu(x, inplace=True),
        x.view(len(x), -1).view(x.shape),
    )[1],
    "a part that is changed in place": lambda x: (x[:, :32].mul_(0.5), torch.relu(x))[1],
    "a view that is changed in place": lambda x: (x.view(len(x), -1).add_(1), torch.relu(x))[1],
    "flat pixels that are changed in place": lambda x: (x.flatten(1).mul_(0.5), torch.relu(x))[1],
    "a flat batch that is changed in place": lambda x: (x.flatten(0, 1).mul_(0.5), torch.relu(x))[1],
    "contiguous memory that is changed in place": lambda x: (x.contiguous().mul_(0.5), torch.relu(x))[1],
    "a single row, flat, and a view": lambda x: (
        x + F.avg_pool2d(x, (8, 1)).flatten(1, 2).view(len(x), -1).view(len(x), 64, 1, 8)
    ),
    "a flat batch, and a view": lambda x: x.flatten(0, 1).view(len(x), -1).view(x.shape),
    "a view of data": lambda x: x.data.view(len(x), -1).view(x.shape),
    "a view before an activation in place": view_before_a_change,
    "what a module returns, changed in place": ChangesWhatAModuleReturns(),
    "scaled channels, and a view": lambda x: (
        ((x.permute(0, 2, 3, 1) * 0.5).permute(0, 3, 1, 2)).view(len(x), -1).view(x.shape)
    ),
    "a layer in place": Sum(nn.SELU(inplace=True)),
    "several layers, one in place": Sum(nn.Sequential(nn.Identity(), nn.CELU(inplace=True))),
    "an opaque module that writes in place": Sum(Doubled()),
    "channels that are attended to": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "another order": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (64,)).permute(0, 3, 1, 2),
    "shuffled channels": lambda x: x.view(len(x), 2, 32, 8, 8).transpose(1, 2).contiguous().view(len(x), 64, 8, 8),
    "rows of pixels": lambda x: x.flatten(2).view(len(x), 4, 16, 64).flatten(1, 2).unflatten(2, (8, 8)),
    "a mean": lambda x: x + x.mean(2).view(len(x), 64, 1, 8),
}


class TwoConvolutions(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.first, self.second = (nn.Conv2d(64, 64, 3, padding=1) for _ in range(2))
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def build(between, compress=0.1):
    torch.manual_seed(0)
    return fxhash.transform(TwoConvolutions(BETWEEN[between]), compress, seed=0)


def ordered(gm):
    return [node for node in gm.graph.nodes if node.target is channels_last]


@pytest.mark.parametrize("between", BETWEEN)
@given(batch=st.integers(1, 3), compress=st.sampled_from([0.1, 0.5]))
def test_outputs_are_those_of_the_trained_model_and_in_no_other_order(between, batch, compress):
    gm = build(between, compress)
    x = torch.randn(batch, 64, 8, 8)
    for lowered in (fxhash.lower_for_deploy(gm), fxhash.lower_for_training(gm)):
        assert_same_outputs(gm, lowered, x)
        outputs = lowered(x)
        assert outputs.is_contiguous() or outputs.stride() == gm(x).stride()


@pytest.mark.parametrize("form", [fxhash.lower_for_deploy, fxhash.lower_for_training])
def test_an_activation_in_place_after_a_linear_layer_changes_nothing(form):
    """The layer is a function of ours by then."""
    layers = [nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 16, 256), nn.ReLU(inplace=True)]
    gm = fxhash.transform(nn.Sequential(*layers, nn.Linear(256, 10)), 0.05, seed=0)
    split = fxhash.DeviceProfile(depthwise_cost=0.0, call_cost=0.0)
    lowered = fxhash.lower_for_deploy(gm, device=split) if form is fxhash.lower_for_deploy else form(gm)
    assert ordered(lowered) or any(node.target is separable_conv for node in lowered.graph.nodes)
    assert_same_outputs(gm, lowered, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("between", ["nothing", "channels that are attended to"])
def test_the_first_of_several_convolutions_puts_them_last(between):
    deployed = fxhash.lower_for_deploy(build(between))
    (first,) = ordered(deployed)
    assert first.args[0].name in ("x", "checked_input")


def test_channels_that_a_user_puts_last_are_not_copied_before():
    split = fxhash.DeviceProfile(depthwise_cost=0.0, call_cost=0.0)
    deployed = fxhash.lower_for_deploy(build("another order"), device=split)
    assert len(ordered(deployed)) == 2
    x = torch.randn(2, 64, 8, 8)
    copies = [node for node in deployed.graph.nodes if node.target == "contiguous"]
    assert [node.next.op for node in copies] == ["output"]
    assert_same_outputs(build("another order"), deployed, x)


def test_one_convolution_leaves_them_where_they_are():
    gm = fxhash.transform(nn.Sequential(nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64, 10)), 0.5, seed=0)
    assert not ordered(fxhash.lower_for_deploy(gm))


@pytest.mark.parametrize("between", ["a part that is changed in place", "a view that is changed in place"])
def test_what_is_changed_through_a_view_is_not_copied(between):
    assert not ordered(fxhash.lower_for_deploy(build(between)))


class ChangesItsInput(nn.Module):
    """Two convolutions that stay dense, of what is changed in place by a call whose result nobody reads."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3) for _ in range(2))
        self.last = nn.Linear(4, 1000)

    def forward(self, x):
        x = x.clone()
        x.mul_(0.5)
        return self.last(self.second(self.first(x)).mean((2, 3)))


def test_an_image_is_put_in_order_when_it_is_read():
    gm = fxhash.transform(ChangesItsInput(), 0.5, exclude=["first", "second"], seed=0)
    deployed = fxhash.lower_for_deploy(gm)
    assert ordered(deployed)
    assert_same_outputs(gm, deployed, torch.randn(2, 4, 8, 8))


def test_a_device_may_have_them_first():
    gm = build("nothing")
    assert not ordered(fxhash.lower_for_deploy(gm, device=fxhash.DeviceProfile(channels_last=False)))
    assert not ordered(fxhash.lower_for_deploy(gm, device=fxhash.DeviceProfile.of("cuda")))


@pytest.mark.parametrize(
    "x", [torch.randn(3), torch.randn(2, 3, 4), torch.randn(2, 3, 4, 5, 6), torch.empty(2, 3, 4, 5, device="meta")]
)
def test_other_tensors_stay_as_they_are(x):
    assert channels_last(x) is x
    assert not has_channels_last(x)


def test_the_order_of_images():
    x = torch.randn(2, 3, 4, 5)
    assert not has_channels_last(x)
    assert has_channels_last(channels_last(x))
    assert torch.equal(channels_last(x), x)
    # One pixel, or one channel, is in both orders.
    assert not has_channels_last(channels_last(torch.randn(2, 3, 1, 1)))
