"""Layers that apply the low-rank factors of their weight directly and never materialize the weight.

A weight of shape `(out, in, ...)` is a slice of `left @ right`, rows of `cols` elements. Where the `in * ...` weights
of one output channel are a whole number of rows, or a row holds a whole number of channels, the layer is two smaller
ones: one with the rows of `right` as its kernels, and one that mixes their outputs by `left`. With a small rank that is
less work than the dense layer, whatever the batch.

All are pure functions of tensors. Throughout, `left` has shape `(rows, rank)` and is scaled already, and `right` has
shape `(at least rank, cols)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.graph.recorded import computing, recorded
from fxhash.lowering.convolution import convolve, pointwise
from fxhash.smh.arithmetic import generate
from fxhash.smh.precision import accumulated_in_float32
from fxhash.smh.regeneration import apply_layer, generate_weight


def rows_per_channel(shape: Sequence[int], cols: int) -> int | None:
    """How many whole rows an output channel takes; None if rows and channels are not aligned that way."""
    channel = math.prod(shape[1:])
    return channel // cols if channel % cols == 0 else None


@computing
@recorded
@accumulated_in_float32
def factored_linear(x: Tensor, left: Tensor, right: Tensor, shape: Sequence[int], bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)` for the weight of `shape` `(out, in)` that `left @ right` stands for.

    Args:
        x: input of shape `(..., in)`.
        left: the weight's own rows of the left factor.
        right: the right factor.
        shape: the weight's shape, which must be row-aligned.
        bias: of shape `(out,)`.

    Returns:
        Shape `(..., out)`.
    """
    out, features = shape
    rank, cols = left.shape[1], right.shape[1]
    right = right[:rank]
    if cols == features:
        return F.linear(F.linear(x, right), left, bias)
    if cols < features:
        parts = F.linear(x.unflatten(-1, (features // cols, cols)), right)
        return F.linear(parts.flatten(-2), left.view(out, -1), bias)
    per_row = cols // features
    # Ordered such that mixing is one large product; the copy is of the size of `right`.
    kernels = right.view(rank, per_row, features).transpose(0, 1).reshape(-1, features)
    mixed = F.linear(F.linear(x, kernels).unflatten(-1, (per_row, rank)), left)
    if bias is not None and is_exporting():
        # Before the channels are put in order: behind that, ONNX Runtime fuses it with a GELU that takes twice as long.
        mixed, bias = mixed + F.pad(bias, (0, -out % per_row)).view(-1, per_row).t().to(mixed), None
    mixed = mixed.transpose(-1, -2).flatten(-2)[..., :out]
    # A sum is contiguous again, so that what comes after needs no copy.
    return mixed if bias is None else mixed + bias.to(mixed)


@computing
@recorded
@accumulated_in_float32
def factored_conv(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Tensor:
    """`F.conv1d`, `2d` or `3d` for the weight of `shape` `(out, in, *kernel)` that `left @ right` stands for.

    Args:
        x: input of shape `(batch, in, *size)` or `(in, *size)`.
        left: the weight's own rows of the left factor.
        right: the right factor.
        shape: the weight's shape, which must be row-aligned.
        bias: of shape `(out,)`.
        stride: as in `F.conv2d`.
        padding: as in `F.conv2d`.
        dilation: as in `F.conv2d`.

    Returns:
        Shape `(batch, out, *size)` or `(out, *size)`.
    """
    out, channels, *kernel = shape
    if x.dim() == len(kernel) + 1:
        return factored_conv(x.unsqueeze(0), left, right, shape, bias, stride, padding, dilation).squeeze(0)
    rank, cols = left.shape[1], right.shape[1]
    right = right[:rank]
    together = cols // math.prod(kernel)
    if together <= channels:
        groups = channels // together
        grouped = x.reshape(x.shape[0] * groups, together, *x.shape[2:])
        parts = convolve(grouped, right.view(rank, together, *kernel), None, stride, padding, dilation)
        parts = parts.reshape(x.shape[0], groups * rank, *parts.shape[2:])
        return pointwise(parts, left.view(out, groups * rank, *[1] * len(kernel)), bias)
    kernels = right.reshape(-1, channels, *kernel)
    parts = convolve(x, kernels, None, stride, padding, dilation)
    per_row = cols // math.prod(shape[1:])
    mixed = left @ parts.reshape(x.shape[0], rank, per_row * math.prod(parts.shape[2:]))
    mixed = mixed.reshape(x.shape[0], left.shape[0] * per_row, *parts.shape[2:])[:, :out]
    return mixed if bias is None else mixed + bias.to(mixed).view(-1, *[1] * len(kernel))


@computing
@recorded
def scale_channels(weight: Tensor, scale: Tensor) -> Tensor:
    """A weight with each output channel times a factor of its own.

    Args:
        weight: shape `(out, ...)`.
        scale: shape `(out,)`.

    Returns:
        The shape and type of `weight`.
    """
    return (weight.flatten(1) * scale.unsqueeze(1).to(weight)).view(weight.shape)


@computing
@recorded
def adaptive_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    bias: Tensor | None,
    max_positions: float,
    scratch: Tensor | None = None,
) -> Tensor:
    """`factored_linear` for at most `max_positions` rows of input; beyond, generating the weight once is less work."""
    if holds(x.numel() // shape[1] <= max_positions):
        return factored_linear(x, left, right, shape, bias)
    return apply_layer(F.linear, x, _generated(left, right, shape, scratch), bias)


@computing
@recorded
def adaptive_conv(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    max_positions: int,
    scratch: Tensor | None = None,
) -> Tensor:
    """`factored_conv` for at most `max_positions` pixels of input; beyond, generating the weight once is less work."""
    if holds(x.numel() // shape[1] <= max_positions):
        return factored_conv(x, left, right, shape, bias, stride, padding, dilation)
    weight = _generated(left, right, shape, scratch)
    return apply_layer(convolve, x, weight, bias, stride, padding, dilation)


def _generated(left: Tensor, right: Tensor, shape: Sequence[int], scratch: Tensor | None) -> Tensor:
    return generate_weight(left, right, shape) if scratch is None else generate(left, right, shape, scratch=scratch)


# Torch 2.6 has no such function, and decides for the sizes of the example.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def holds(condition: bool) -> bool:
    """Whether a condition on sizes holds; where an exported program leaves sizes open, whether it does for all."""
    if not is_exporting():
        return condition
    # Here, since it takes longer to import than the rest of this package.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
