"""Factored layers for runtimes that compute once what depends on constants alone, such as ONNX Runtime.

They compute what those of `functional` do. Convolutions are such of the input with kernels that only constants make: no
activation is reshaped between them. ONNX Runtime then keeps activations in blocks of channels, in which its
convolutions are fastest, and adds bias, batch norm, residual and activation in the same pass. In PyTorch, which would
arrange the kernels anew in each call, `functional` is faster.

All are pure functions of tensors, and take what their namesakes in `functional` take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.graph.layers import CONVOLUTIONS
from fxhash.graph.recorded import recorded
from fxhash.lowering.convolution import depthwise, of_each_kernel
from fxhash.lowering.functional import factored_conv, factored_linear
from fxhash.smh.precision import accumulated_in_float32

# Channels that ONNX Runtime computes together, at most (AVX-512). In convolutions with groups each group must have a
# multiple of them, in others the input a multiple of four; what is missing is filled with zeros.
_BLOCK = 16
_INPUT_MULTIPLE = 4
# Up to how many channels in a row of `W` mixing is one convolution: its work grows with them, zeros included.
_MOST_PER_ROW = 4


@recorded
@accumulated_in_float32
def linear_apart(x: Tensor, left: Tensor, right: Tensor, shape: Sequence[int], bias: Tensor | None = None) -> Tensor:
    """`factored_linear` with its features in the order in which the products give them, for `linear_of_apart`.

    A row of `W` must hold several features, `parts`, and their number be a multiple of that.

    Returns:
        Shape `(..., out)`, in which feature `j * parts + i` comes as number `i * (out / parts) + j`.
    """
    _, features = shape
    rank, parts = left.shape[1], right.shape[1] // features
    kernels = right[:rank].view(rank, parts, features).transpose(0, 1).reshape(-1, features)
    mixed = F.linear(F.linear(x, kernels).unflatten(-1, (parts, rank)), left)
    return (mixed if bias is None else mixed + bias.view(-1, parts).t().to(mixed)).flatten(-2)


@recorded
@accumulated_in_float32
def linear_of_apart(
    x: Tensor, left: Tensor, right: Tensor, shape: Sequence[int], bias: Tensor | None, parts: int
) -> Tensor:
    """`factored_linear` of what `linear_apart` gave, whose order `right` takes over."""
    features, rank = shape[1], left.shape[1]
    ordered = right[:rank].view(-1, features // parts, parts).transpose(1, 2).reshape(rank, -1)
    return factored_linear(x, left, ordered, shape, bias)


@recorded
@accumulated_in_float32
def constant_conv(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Tensor:
    """`factored_conv` as two convolutions, with groups where an output channel takes several rows of `W`."""
    if right.shape[1] // math.prod(shape[1:]) > _MOST_PER_ROW or x.dim() != len(shape):
        return factored_conv(x, left, right, shape, bias, stride, padding, dilation)
    first, second, groups = _two_kernels(left, right, shape)
    convolution = CONVOLUTIONS[len(shape) - 2]
    parts = convolution(x, first, None, stride, padding, dilation, groups)
    return convolution(parts, second, bias)


@recorded
@accumulated_in_float32
def constant_separable_conv(
    x: Tensor,
    kernels: Tensor,
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Tensor:
    """`depthwise` and the factored convolution after it, of pointwise weights for pairs of channels times kernels.

    Args:
        x: input of shape `(batch, in, *size)` or `(in, *size)`.
        kernels: shape `(count, positions)`.
        left: the pointwise half's own rows of the left factor.
        right: the right factor.
        shape: the convolution's weight's shape, `(out, in, *kernel)`.
        bias: of shape `(out,)`.
        stride: as in `F.conv2d`.
        padding: as in `F.conv2d`.
        dilation: as in `F.conv2d`.

    Returns:
        Shape `(batch, out, *size)` or `(out, *size)`.
    """
    if x.dim() != len(shape):
        return constant_separable_conv(
            x.unsqueeze(0), kernels, left, right, shape, bias, stride, padding, dilation
        ).squeeze(0)
    out, channels, *kernel = shape
    count, ones = kernels.shape[0], [1] * len(kernel)
    pointwise = (out, channels * count, *ones)
    if right.shape[1] % count:
        return constant_conv(depthwise(x, kernels, shape, stride, padding, dilation), left, right, pointwise, bias)
    first, second, groups = _two_kernels(left, right, pointwise)
    # A group has a number of whole input channels, each with all kernels.
    first = first.view(first.shape[0], -1, count, *ones)
    convolution = CONVOLUTIONS[len(kernel)]
    parts = [
        convolution(spatial, first[:, :, index], None, 1, 0, 1, groups)
        for index, spatial in enumerate(of_each_kernel(x, kernels, shape, stride, padding, dilation))
    ]
    return convolution(sum(parts[1:], parts[0]), second, bias)


@recorded
@accumulated_in_float32
def constant_pointwise_conv(
    x: Tensor,
    kernels: Tensor,
    weight: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Tensor:
    """The same with a pointwise weight that is there, of shape `(out, in * count, 1, ...)`."""
    if x.dim() != len(shape):
        return constant_pointwise_conv(x.unsqueeze(0), kernels, weight, shape, bias, stride, padding, dilation).squeeze(
            0
        )
    out, channels, *kernel = shape
    ones = [1] * len(kernel)
    by_kernel = weight.view(out, channels, -1).transpose(1, 2).reshape(out, -1, *ones)
    spatial = torch.cat(of_each_kernel(x, kernels, shape, stride, padding, dilation), dim=1)
    return CONVOLUTIONS[len(kernel)](spatial, by_kernel, bias)


def _two_kernels(left: Tensor, right: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, int]:
    """The kernels of the two convolutions, and the groups of the first."""
    out, channels, *kernel = shape
    ones = [1] * len(kernel)
    rank, cols = left.shape[1], right.shape[1]
    right = right[:rank]
    together = cols // math.prod(kernel)
    if together <= channels:
        groups = channels // together
        missing = -rank % (_INPUT_MULTIPLE if groups == 1 else _BLOCK)
        first = F.pad(right, (0, 0, 0, missing)).view(rank + missing, together, *kernel)
        second = F.pad(left.view(out, groups, rank), (0, missing)).reshape(out, -1, *ones)
        return first.repeat(groups, 1, *ones), second, groups
    per_row = cols // math.prod(shape[1:])
    missing = -rank * per_row % _INPUT_MULTIPLE
    first = F.pad(right.reshape(rank * per_row, -1), (0, 0, 0, missing)).view(-1, channels, *kernel)
    apart = left[:, None, :, None] * torch.eye(per_row, dtype=left.dtype, device=left.device)[:, None, :]
    second = F.pad(apart.reshape(-1, rank * per_row)[:out], (0, missing))
    return first, second.view(out, -1, *ones), 1
