"""Depthwise convolutions of small images as matrix products, which processors with bfloat16 do many times faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fxhash.graph.recorded import body_of

# Up to this side, an image is one product with a matrix of `side**2` rows; the work grows with the fourth power of it.
_LARGEST_SIDE = 16
# Up to so many channels, a grouped convolution of larger images is a regular one with zeros between the groups.
_MOST_CHANNELS = 96


@contextmanager
def depthwise_as_products(device_type: str) -> Iterator[None]:
    """Compute what within is a depthwise convolution as a matrix product, if this is faster there.

    So it is on a CPU under autocast to bfloat16, where oneDNN has no fast gradient of a large or dilated depthwise
    kernel. Outputs and gradients are equal but for rounding.

    Args:
        device_type: where the images are, such as `"cpu"`.
    """
    if device_type == "cpu" and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16:
        with _Products():
            yield
    else:
        yield


class _Products(TorchFunctionMode):
    """Replaces calls of `torch.conv2d`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or what is faster and gives the same."""
        if func is torch.conv2d:
            return _convolution(*args, **(kwargs or {}))
        body = body_of(func)
        if body is None:
            return func(*args, **(kwargs or {}))
        # A layer of a model that is lowered for training: the convolution is within.
        with self:
            return body(*args, **(kwargs or {}))


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups == 1 or input.dim() != 4 or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    same_size = all(
        _two(stride)[side] == 1 and 2 * _two(padding)[side] == _two(dilation)[side] * (weight.shape[2 + side] - 1)
        for side in (0, 1)
    )
    is_depthwise = groups == input.shape[1] == weight.shape[0]
    if is_depthwise and same_size and max(input.shape[2:]) <= _LARGEST_SIDE:
        return depthwise_product(input, weight, bias, _two(padding), _two(dilation))
    if input.shape[1] <= _MOST_CHANNELS:
        return torch.conv2d(input, ungrouped(weight.to(torch.bfloat16), groups), bias, stride, padding, dilation)
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def depthwise_product(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """A depthwise convolution that keeps the size of images, as one product of matrices for each channel, in bfloat16.

    Args:
        images: `(batch, channels, height, width)`.
        weight: `(channels, 1, rows, columns)`.
        bias: `(channels,)`, or None.
        padding: in height and width.
        dilation: in height and width.
    """
    dtype = torch.bfloat16
    batch, channels, height, width = images.shape
    rows, columns = (
        _placements(size, weight.shape[2 + side], padding[side], dilation[side], dtype)
        for side, size in enumerate((height, width))
    )
    matrices = torch.einsum("cyx,yio,xjp->cijop", weight[:, 0].to(dtype), rows, columns)
    by_channel = images.to(dtype).transpose(0, 1).reshape(channels, batch, height * width)
    out = torch.bmm(by_channel, matrices.reshape(channels, height * width, height * width))
    if bias is not None:
        out = out + bias.to(dtype).view(channels, 1, 1)
    return out.view(channels, batch, height, width).transpose(0, 1)


@lru_cache(maxsize=64)
def _placements(size: int, kernel_size: int, padding: int, dilation: int, dtype: torch.dtype) -> Tensor:
    """For each position of a kernel, input and output along one side: 1 where they meet, else 0."""
    out = torch.arange(size)
    placements = torch.zeros(kernel_size, size, size, dtype=dtype)
    for position in range(kernel_size):
        read = out - padding + position * dilation
        inside = (read >= 0) & (read < size)
        placements[position, read[inside], out[inside]] = 1
    return placements


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weight of the regular convolution that equals a grouped one: zeros between channels of different groups.

    Args:
        weight: `(out_channels, in_channels / groups, rows, columns)`.
        groups: of the convolution.

    Example:
        >>> ungrouped(torch.tensor([2.0, 3.0]).view(2, 1, 1, 1), groups=2).view(2, 2).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    out, share, *kernel = weight.shape
    by_group = weight.view(groups, out // groups, share, *kernel).unsqueeze(2)
    between = F.one_hot(torch.arange(groups, device=weight.device)).to(weight.dtype)
    return (by_group * between.view(groups, 1, groups, 1, 1, 1)).reshape(out, groups * share, *kernel)


def _two(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return value[0], value[-1]
