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

from fxhash.graph.recorded import recorded
from fxhash.lowering.convolution import convolve, pointwise
from fxhash.smh.arithmetic import generate
from fxhash.smh.precision import accumulated_in_float32, without_autocast
from fxhash.smh.regeneration import apply_layer, generate_weight

# Elements of what a lookup computes at a time, and up to how many entries in a row of `W` it computes the whole row.
_LARGEST_INTERMEDIATE = 2**20
_FEW_PER_ROW = 8


def rows_per_channel(shape: Sequence[int], cols: int) -> int | None:
    """How many whole rows an output channel takes; None if rows and channels are not aligned that way."""
    channel = math.prod(shape[1:])
    return channel // cols if channel % cols == 0 else None


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


@recorded
@without_autocast
def factored_embedding(indices: Tensor, left: Tensor, right: Tensor, shape: Sequence[int]) -> Tensor:
    """`F.embedding(indices, weight)` for the table of `shape` `(count, size)` that `left @ right` stands for.

    Only the rows that are looked up are generated, a bounded number at a time.

    Args:
        indices: integers of any shape.
        left: the table's own rows of the left factor.
        right: the right factor.
        shape: the table's shape, which must be row-aligned.

    Returns:
        Shape `(*indices.shape, size)`.
    """
    count, size = shape
    rank, cols = left.shape[1], right.shape[1]
    right = right[:rank]
    if cols <= size:
        chosen = F.embedding(indices, left.view(count, -1)).unflatten(-1, (-1, rank))
        return (chosen @ right).flatten(-2)
    per_row = cols // size
    # A sum over a bag never holds what it adds up, but its backward pass is slow, and no exporter knows it.
    trained = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    by_bags = not trained and not is_exporting()
    whole_rows = per_row <= _FEW_PER_ROW
    most = max(_LARGEST_INTERMEDIATE // (rank if by_bags else cols if whole_rows else rank * size), 1)
    segments = right.view(rank * per_row, size)
    blocks = segments if by_bags else right.view(rank, per_row, size).transpose(0, 1).reshape(per_row, -1)
    pieces = []
    flat = indices.reshape(-1)
    for piece in flat.split(most) if _holds(flat.shape[0] > most) else (flat,):
        rows, block = F.embedding(piece // per_row, left), piece % per_row
        if by_bags:
            of_block = torch.arange(0, rank * per_row, per_row, device=block.device) + block.unsqueeze(1)
            pieces.append(F.embedding_bag(of_block, segments, per_sample_weights=rows, mode="sum"))
        elif whole_rows:
            generated = (rows @ right).view(rows.shape[0] * per_row, size)
            first = torch.arange(0, generated.shape[0], per_row, device=block.device)
            pieces.append(F.embedding(first + block, generated))
        else:
            chosen = F.embedding(block, blocks).view(block.shape[0], rank, size)
            pieces.append(torch.bmm(rows.unsqueeze(1), chosen).squeeze(1))
    looked_up = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return looked_up.view(*indices.shape, size)


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
    if _holds(x.numel() // shape[1] <= max_positions):
        return factored_linear(x, left, right, shape, bias)
    return apply_layer(F.linear, x, _generated(left, right, shape, scratch), bias)


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
    if _holds(x.numel() // shape[1] <= max_positions):
        return factored_conv(x, left, right, shape, bias, stride, padding, dilation)
    weight = _generated(left, right, shape, scratch)
    return apply_layer(convolve, x, weight, bias, stride, padding, dilation)


def _generated(left: Tensor, right: Tensor, shape: Sequence[int], scratch: Tensor | None) -> Tensor:
    return generate_weight(left, right, shape) if scratch is None else generate(left, right, shape, scratch=scratch)


# Torch 2.6 has no such function, and decides for the sizes of the example.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def _holds(condition: bool) -> bool:
    """Whether a condition on sizes holds; where an exported program leaves sizes open, whether it does for all."""
    if not is_exporting():
        return condition
    # Here, since it takes longer to import than the rest of this package.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
