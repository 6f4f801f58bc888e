"""The order in memory in which CPUs convolve fast: the channels of a pixel next to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from fxhash.graph.recorded import is_compiled_or_traced, is_plain_tensor, recorded


@recorded
def channels_last(x: Tensor) -> Tensor:
    """The same images in `torch.channels_last`.

    Args:
        x: shape `(batch, channels, height, width)`.

    Returns:
        `x` itself on other devices, for compilers, exporters and `torch.func`, and for what is no batch of images.
    """
    if not _may_be_ordered(x):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def has_channels_last(x: Tensor) -> bool:
    """Whether images lie in that order and in no other, in eager mode on a CPU."""
    return _may_be_ordered(x) and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _may_be_ordered(x: Tensor) -> bool:
    return not is_compiled_or_traced() and x.dim() == 4 and x.device.type == "cpu" and is_plain_tensor(x)
