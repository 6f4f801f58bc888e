"""Separable convolutions that are trained: a depthwise convolution, and a linear layer over the channels.

Both are fast where the channels of a pixel lie next to each other (`torch.channels_last`), which is how the output lies
in memory too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxhash.graph.recorded import computing, is_plain_tensor, recorded
from fxhash.lowering.convolution import of_each_kernel
from fxhash.lowering.functional import adaptive_linear

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@computing
@recorded
def separable_conv(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    kernels: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    max_positions: float = math.inf,
) -> Tensor:
    """`F.conv1d`, `2d` or `3d` for the weight of `shape` that a slice of `left @ right` and `kernels` stand for.

    Args:
        x: input of shape `(batch, in, *size)` or `(in, *size)`.
        left: the weight's own rows of the left factor, scaled.
        right: the right factor.
        kernels: the spatial kernels; shape `(count, positions)`.
        shape: the weight's shape, `(out, in, *kernel)`.
        bias: of shape `(out,)`.
        stride: as in `F.conv2d`.
        padding: as in `F.conv2d`.
        dilation: as in `F.conv2d`.
        max_positions: up to how many pixels of output the factors are applied; for more, their product is generated.

    Returns:
        Shape `(batch, out, *size)` or `(out, *size)`.
    """
    out, channels, *kernel = shape
    if x.dim() == len(kernel) + 1:
        one = (x.unsqueeze(0), left, right, kernels, shape, bias, stride, padding, dilation, max_positions)
        return separable_conv(*one).squeeze(0)
    if x.dim() in _CHANNELS_LAST:
        x = x.contiguous(memory_format=_CHANNELS_LAST[x.dim()])
    count, right = kernels.shape[0], right[: left.shape[1]]
    parts = [part.movedim(1, -1) for part in of_each_kernel(x, kernels, shape, stride, padding, dilation)]
    # A row of `right` has all kernels of a channel, then the next: other columns, so that what is put together are
    # blocks of channels.
    block = min(channels, right.shape[1] // count)
    if block == 0 or right.shape[1] % (block * count) or channels % block:
        mixed = torch.stack(parts, -1).flatten(-2)
    else:
        right = right.view(right.shape[0], -1, block, count).transpose(-1, -2).flatten(1)
        if block < channels:
            blocks = zip(*(each.split(block, -1) for each in parts), strict=True)
            parts = [piece for pieces in blocks for piece in pieces]
        mixed = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
    return adaptive_linear(mixed, left, right, (out, channels * count), bias, max_positions).movedim(-1, 1)


@recorded
def reorder_gradient(x: Tensor) -> Tensor:
    """The same tensor, whose gradient gets the order in memory that it has itself.

    Backward of a batch norm takes several times as long where its input's channels come last and its gradient's don't.
    """
    last = _CHANNELS_LAST.get(x.dim())
    if (
        last is not None
        and x.requires_grad
        and not torch.compiler.is_compiling()
        and is_plain_tensor(x)
        and x.is_contiguous(memory_format=last)
    ):
        x.register_hook(partial(Tensor.contiguous, memory_format=last))
    return x
