"""The arithmetic of Structured Multi-Hashing: pure functions on tensors.

All hashed parameters fill one global matrix `W = left @ right` (Eban et al., CVPR 2020, arXiv 1911.11177), each from a
row of its own on, in row-major order. So the weight of a parameter is the product of its own rows of `left` with
`right`, flattened and cut to size. Nothing here knows of `torch.fx` or `torch.nn`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fxhash.graph.recorded import computing, recorded
from fxhash.smh.precision import without_autocast


def rows_for(numel: int, cols: int) -> int:
    """Number of rows of `W` that a parameter of `numel` elements takes.

    Example:
        >>> rows_for(7, cols=3)
        3
    """
    return -(-numel // cols)


def is_row_aligned(shape: Sequence[int], cols: int) -> bool:
    """Whether a row of `W` holds a number of output channels of this shape, or an output channel a number of rows.

    A layer with such a weight can apply the low-rank factors directly, without materializing the weight.

    Example:
        >>> [is_row_aligned((64, 32, 3, 3), cols) for cols in (144, 576, 100)]
        [True, True, False]
    """
    channel, kernel = math.prod(shape[1:]), math.prod(shape[2:])
    return len(shape) >= 2 and (cols % channel == 0 or (channel % cols == 0 and cols % kernel == 0))


@computing
@recorded
@without_autocast
def generate(
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    shift: Tensor | None = None,
    channel_scale: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    """One weight: `channel_scale * (left @ right[:rank] + shift).flatten()[:numel].view(shape)`.

    Args:
        left: the parameter's own rows of the left factor, scaled; shape `(rows, rank)`.
        right: the shared right factor, of shape `(at least rank, cols)`.
        shape: the weight's shape, of more than `(rows - 1) * cols` and at most `rows * cols` elements.
        shift: a constant to add, of shape `()`; nothing if omitted.
        channel_scale: a factor for each output channel, of shape `(shape[0],)`; one if omitted.
        scratch: memory to write to, of shape `(at least rows * cols,)`; new memory if omitted.

    Returns:
        A contiguous tensor of `shape`.

    Example:
        >>> left, right = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0, 3.0]])
        >>> generate(left, right, (2, 2)).tolist()
        [[1.0, 2.0], [3.0, 2.0]]
    """
    # No slices of everything: their backward copies the gradient.
    right = right if right.shape[0] == left.shape[1] else right[: left.shape[1]]
    size = (left.shape[0], right.shape[1])
    room = None if scratch is None else scratch[: math.prod(size)].view(size)
    rows = torch.mm(left, right, out=room) if shift is None else torch.addmm(shift, left, right, out=room)
    numel = math.prod(shape)
    weight = (rows if numel == math.prod(size) else rows.flatten()[:numel]).view(tuple(shape))
    if channel_scale is None:
        return weight
    channels = weight.view(shape[0], -1)
    if torch.compiler.is_compiling():
        # What is written into a part of a tensor would be exported as a scatter.
        return (channels * channel_scale.unsqueeze(1)).view(weight.shape)
    channels.mul_(channel_scale.unsqueeze(1))
    return weight


@computing
@recorded
@without_autocast
def separable(pointwise: Tensor, kernels: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight of a separable convolution: `sum(pointwise[o, i, k] * kernels[k] for k in range(count))`.

    Args:
        pointwise: an entry for each output channel, input channel and kernel, in this order; any shape.
        kernels: the spatial kernels, of shape `(count, positions)`.
        shape: the weight's shape, `(out, in, *kernel)`.

    Returns:
        A contiguous tensor of `shape`.

    Example:
        >>> pointwise, kernels = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0, -1.0]])
        >>> separable(pointwise, kernels, (1, 2, 3)).tolist()
        [[[1.0, 0.0, -1.0], [2.0, 0.0, -2.0]]]
    """
    return (pointwise.reshape(-1, kernels.shape[0]) @ kernels).view(tuple(shape))
