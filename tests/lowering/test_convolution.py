"""The halves of a separable convolution equal those of torch, whichever way they are computed."""

from __future__ import annotations

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from fxhash.lowering import convolution
from fxhash.lowering.convolution import depthwise, pointwise
from fxhash.smh.arithmetic import separable

sizes = st.integers(1, 6)


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    sizes,
    sizes,
    st.integers(1, 4),
    st.integers(1, 2),
    st.booleans(),
)
def test_a_separable_convolution_is_a_depthwise_and_a_pointwise_one(kernel, out, channels, count, stride, batched):
    layer = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    shape = (out, channels, *kernel)
    run = torch.randn(out, channels * count, dtype=torch.float64)
    kernels = torch.randn(count, math.prod(kernel), dtype=torch.float64)
    x = torch.randn(*[2] * batched, channels, *[5] * len(kernel), dtype=torch.float64)
    both = layer(depthwise(x, kernels, shape, stride, 1), run.view(*run.shape, *[1] * len(kernel)))
    torch.testing.assert_close(both, layer(x, separable(run, kernels, shape), None, stride, 1))


@given(
    st.sampled_from([(3,), (5,), (64,), (65,), (3, 4), (8, 8), (8, 9), (16, 16), (20, 16), (16, 17), (2, 3, 4)]),
    st.data(),
)
def test_a_depthwise_convolution_is_the_same_as_a_product_of_matrices(size, data):
    dims, several = len(size), st.integers(1, 3)
    kernel, channels, count = data.draw(st.tuples(*[several] * dims)), data.draw(several), data.draw(several)
    stride, padding, dilation = (
        data.draw(st.tuples(*[steps] * dims)) for steps in (several, st.integers(0, 2), several)
    )
    assume(all(p + 2 * q > d * (k - 1) for p, q, d, k in zip(size, padding, dilation, kernel, strict=True)))
    shape = (1, channels, *kernel)
    kernels = torch.randn(count, math.prod(kernel), dtype=torch.float64)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    actual = depthwise(x, kernels, shape, stride, padding, dilation)
    expected = depthwise(x, kernels.clone().requires_grad_(), shape, stride, padding, dilation)
    torch.testing.assert_close(actual, expected)
    numbers = [steps[0] if len({*steps}) == 1 else [*steps] for steps in (stride, padding, dilation)]
    torch.testing.assert_close(depthwise(x, kernels, shape, *numbers), expected)


def test_depthwise_convolutions_of_all_ways_are_reached(monkeypatch):
    ways = []

    def noting(name, called):
        return lambda *args: ways.append(name) or called(*args)

    for name in ("_matrix", "_by_rows", "of_each_kernel"):
        called = getattr(convolution, name)
        monkeypatch.setattr(
            convolution, name, lambda *args, name=name, called=called: ways.append(name) or called(*args)
        )
    for size in ((8, 8), (16, 16), (17, 17)):
        depthwise(torch.randn(1, 2, *size), torch.randn(2, 9), (1, 2, 3, 3), 1, 1)
        ways.append(size)
    assert ways == ["_matrix", (8, 8), "_by_rows", "_matrix", (16, 16), "of_each_kernel", (17, 17)]


@given(st.sampled_from([(1,), (100,), (2, 2), (8, 8), (4, 4, 5)]), st.integers(0, 40), st.booleans(), st.booleans())
def test_a_pointwise_convolution_is_the_same_as_a_product_of_matrices(size, batch, has_bias, last):
    layer = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    weight = torch.randn(3, 2, *[1] * len(size), dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64) if has_bias else None
    x = torch.randn(batch, 2, *size, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if last and x.dim() == 4 else x
    torch.testing.assert_close(pointwise(x, weight, bias), layer(x, weight, bias))
