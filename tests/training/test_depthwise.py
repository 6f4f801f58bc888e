"""Depthwise convolutions as matrix products: the same outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fxhash
from fxhash import zoo
from fxhash.training.depthwise import depthwise_as_products, depthwise_product, ungrouped


def gradients(out, inputs):
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out, *torch.autograd.grad((out.float() * weights).sum(), inputs)]


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3, 5, 7]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_a_product_is_the_convolution(batch, channels, height, width, kernel, dilation, has_bias, seed):
    """Small integers are exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randint(-2, 3, shape, generator=generator).float().requires_grad_()

    images, weight = draw(batch, channels, height, width), draw(channels, 1, kernel, kernel)
    bias = draw(channels) if has_bias else None
    inputs = [each for each in (images, weight, bias) if each is not None]
    padding = dilation * (kernel - 1) // 2
    expected = gradients(F.conv2d(images, weight, bias, 1, padding, dilation, channels), inputs)
    actual = gradients(depthwise_product(images, weight, bias, (padding,) * 2, (dilation,) * 2), inputs)
    assert actual[0].dtype == torch.bfloat16
    for wanted, got in zip(expected, actual, strict=True):
        # Sums that should be zero are off by the rounding of what is added up.
        tolerance = 2e-2 * float(wanted.detach().abs().max()) + 1e-5
        torch.testing.assert_close(got.float(), wanted, rtol=2e-2, atol=tolerance)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_a_weight_without_groups(groups, out, share, kernel):
    images, weight = torch.randn(2, groups * share, 5, 4), torch.randn(groups * out, share, kernel, kernel)
    torch.testing.assert_close(F.conv2d(images, ungrouped(weight, groups)), F.conv2d(images, weight, groups=groups))


def compressed(model):
    return fxhash.transform(model, 0.3, seed=0)


NETWORKS = {
    "dense": lambda model: model,
    "compressed": compressed,
    "lowered": lambda model: fxhash.lower_for_training(compressed(model)),
}


class Groups(TorchDispatchMode):
    """The groups of each convolution that runs inside a `with` block."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.convolution:
            self.found.append(args[8])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("side", "products"), [(16, 6), (20, 3)])
def test_a_network_under_autocast(name, side, products):
    """It has no grouped convolution left, and its outputs but for rounding."""
    torch.manual_seed(0)
    model, images = NETWORKS[name](zoo.create("convnext2", width=12)), torch.randn(2, 3, side, side)
    with Groups() as groups:
        expected = model(images)
    # Lowered for training, three layers apply their factors without a convolution.
    count = 11 if name == "lowered" else 14
    assert len(groups.found) == count
    assert sum(each > 1 for each in groups.found) == 7
    with Groups() as groups, torch.autocast("cpu", torch.bfloat16), depthwise_as_products("cpu"):
        actual = model(images)
    assert groups.found == [1] * (count - products)
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("device", "enabled"), [("cpu", False), ("cuda", True)])
def test_elsewhere_convolutions_are_as_ever(device, enabled):
    images, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)
    with Groups() as groups, torch.autocast("cpu", torch.bfloat16, enabled), depthwise_as_products(device):
        F.conv2d(images, weight, padding=1, groups=4)
    assert groups.found == [4]
