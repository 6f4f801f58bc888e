"""The two halves of a separable convolution, as products of matrices where that is faster than a convolution.

PyTorch's depthwise and pointwise convolutions take several times as long as products of matrices do for small images:
the depthwise half of 256 channels of 8 x 8 pixels with two kernels 0.5 ms, and 0.05 ms as one product (one thread).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.graph.layers import CONVOLUTIONS
from fxhash.graph.recorded import computing, is_compiled_or_traced, is_plain_tensor, recorded
from fxhash.lowering.memory_format import has_channels_last

# Pixels of an image times those of its output, up to which a matrix connects each of the one with each of the other.
_LARGEST_CONNECTED = 64 * 64
# Up to which width of images and how many numbers in all of them a matrix connects rows of them.
_WIDEST, _MOST_NUMBERS = 16, 2**17
# A product is faster with at least so many pixels an image, or at most so many in all images.
_MANY_PIXELS, _FEW_IN_ALL = 64, 256


@computing
@recorded
def depthwise(
    x: Tensor, kernels: Tensor, shape: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> Tensor:
    """The first half of a separable convolution: every input channel with every kernel. The other half is pointwise.

    Args:
        x: input of shape `(batch, in, *size)` or `(in, *size)`.
        kernels: shape `(count, positions)`.
        shape: the convolution's weight's shape, `(out, in, *kernel)`.
        stride: as in `F.conv2d`.
        padding: as in `F.conv2d`.
        dilation: as in `F.conv2d`.

    Returns:
        Shape `(batch, in * count, *size)` or `(in * count, *size)`: all kernels of the first channel, then the next. It
        has its channels last in memory if `x` has.
    """
    dims = len(shape) - 2
    if _multiplies(x, kernels) and not isinstance(padding, str):
        steps = tuple(_each(step, dims) for step in (stride, padding, dilation))
        size, kernel = tuple(x.shape[-dims:]), tuple(shape[2:])
        to = tuple(map(_size_after, size, kernel, *steps))
        if min(to) > 0 and math.prod(size) * math.prod(to) <= _LARGEST_CONNECTED:
            matrix = _matrix(kernels, size, to, kernel, *steps)
            return (x.flatten(-dims) @ matrix).view(*x.shape[: -dims - 1], -1, *to)
        if min(to) > 0 and dims == 2 and size[1] <= _WIDEST and x.numel() <= _MOST_NUMBERS and steps[2] == (1, 1):
            return _by_rows(x, kernels, to, kernel, *steps[:2])
    parts = of_each_kernel(x, kernels, shape, stride, padding, dilation)
    if has_channels_last(x):
        return torch.stack([part.movedim(1, -1) for part in parts], -1).flatten(-2).movedim(-1, 1)
    return torch.stack(parts, -dims - 1).flatten(-dims - 2, -dims - 1)


def _by_rows(
    x: Tensor, kernels: Tensor, to: tuple[int, ...], kernel: tuple[int, ...], stride: Any, padding: Any
) -> Tensor:
    """A depthwise convolution, as a product of the rows, as many as the kernel has, that each row of output reads."""
    height, width = kernel[0], x.shape[-1]
    padded = F.pad(x, (0, 0, padding[0], padding[0])).flatten(0, -3)
    # Rows that follow each other do so in memory.
    steps = (padded.shape[1] * width, stride[0] * width, 1)
    rows = padded.as_strided((len(padded), to[0], height * width), steps)
    matrix = _matrix(kernels, (height, width), (1, to[1]), kernel, (1, stride[1]), (0, padding[1]), (1, 1))
    convolved = (rows.flatten(0, 1) @ matrix).view(len(padded), to[0], len(kernels), to[1])
    return convolved.transpose(1, 2).reshape(*x.shape[:-3], -1, *to)


def _matrix(kernels: Tensor, *sizes: tuple[int, ...]) -> Tensor:
    """The matrix `(pixels, count * pixels of the output)` that a depthwise convolution multiplies an image by."""
    return F.pad(kernels.flatten(), (0, 1)).take(_taps(len(kernels), *sizes))


def of_each_kernel(
    x: Tensor, kernels: Tensor, shape: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> list[Tensor]:
    """What `depthwise` puts together: for each kernel, every input channel with it; each of shape `(batch, in, *size)`.

    One convolution a kernel: those with several output channels a group have no fast path.
    """
    _, channels, *kernel = shape
    convolution = CONVOLUTIONS[len(kernel)]
    return [
        convolution(x, each.repeat(channels, 1).view(channels, 1, *kernel), None, stride, padding, dilation, channels)
        for each in kernels
    ]


@computing
@recorded
def pointwise(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv1d`, `2d` or `3d` with kernels of one pixel.

    Args:
        input: shape `(batch, in, *size)` or `(in, *size)`.
        weight: shape `(out, in, 1, ...)`.
        bias: shape `(out,)`.

    Returns:
        Shape `(batch, out, *size)` or `(out, *size)`.
    """
    if has_channels_last(input):
        return F.linear(input.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    dims = weight.dim() - 2
    pixels, images = math.prod(input.shape[-dims:]), math.prod(input.shape[: -dims - 1])
    if not _multiplies(input, weight) or _FEW_IN_ALL // images < pixels < _MANY_PIXELS:
        return CONVOLUTIONS[dims](input, weight, bias)
    mixed = weight.flatten(1) @ input.flatten(-dims)
    mixed = mixed if bias is None else mixed + bias.unsqueeze(1)
    return mixed.unflatten(-1, input.shape[-dims:])


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> Tensor:
    """`F.conv1d`, `2d` or `3d`, or `pointwise` where that is the same."""
    if is_pointwise(weight.shape, stride, padding):
        return pointwise(x, weight, bias)
    return CONVOLUTIONS[weight.dim() - 2](x, weight, bias, stride, padding, dilation)


def is_pointwise(shape: Sequence[int], stride: Any, padding: Any) -> bool:
    """Whether each pixel of the output depends on that one of the input, for a weight of `shape`."""
    return math.prod(shape[2:]) == 1 and _all(stride, 1) and _all(padding, 0)


def _all(steps: Any, value: int) -> bool:
    return all(step == value for step in (steps if isinstance(steps, Iterable) else (steps,)))


def _multiplies(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is for these: not for other devices and layouts, compilers and exporters, nor in training."""
    return (
        not is_compiled_or_traced()
        and is_plain_tensor(x)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous()
        and x.numel() > 0
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    )


def _each(step: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A stride, padding or dilation for each dimension."""
    steps = (step,) if isinstance(step, int) else tuple(step)
    return steps * dims if len(steps) == 1 else steps


def _size_after(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@lru_cache(maxsize=32)
def _taps(
    count: int,
    size: tuple[int, ...],
    to: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Which entry of `(count, *kernel)` connects a pixel with one of the output; the one behind the last if none does.

    Returns:
        Integers of shape `(pixels, count * pixels of the output)`.
    """
    # They outlive the call: no tensors of inference mode, of which autograd can't save any.
    with torch.inference_mode(False), torch.device("cpu"):
        tap = torch.zeros(1, 1, dtype=torch.long)
        connected = torch.ones(1, 1, dtype=torch.bool)
        for pixels, outputs, taps, step, pad, spread in zip(size, to, kernel, stride, padding, dilation, strict=True):
            distance = torch.arange(pixels).unsqueeze(1) + pad - step * torch.arange(outputs)
            here = distance.div(spread, rounding_mode="floor")
            fits = (distance % spread == 0) & (here >= 0) & (here < taps)
            tap = torch.kron(tap, torch.ones_like(here)) * taps + torch.kron(torch.ones_like(tap), here)
            connected = torch.kron(connected.long(), fits.long()).bool()
        none = count * math.prod(kernel)
        each = [torch.where(connected, tap + index * math.prod(kernel), none) for index in range(count)]
        return torch.cat(each, dim=1)
