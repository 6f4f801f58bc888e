"""Small networks of depthwise and pointwise convolutions after ConvNeXt, for images of about 32 x 32 pixels.

From ConvNeXt (Liu et al., "A ConvNet for the 2020s", 2022, https://arxiv.org/abs/2201.03545): depthwise convolutions
with large kernels, one layer norm a block, no pooling but between stages. From InceptionNeXt (Yu et al., 2023,
https://arxiv.org/abs/2303.16900): each depthwise kernel sees a quarter of the channels, a quarter stays as it is. From
gated linear units (Shazeer, 2020, https://arxiv.org/abs/2002.05202): two pointwise convolutions, of which one gates the
other. The number of blocks, the widths 48 and 80 and the kernels are those of https://github.com/xvel/cifar10-tiniest,
which is published with 97,530 parameters and 94.4 % on CIFAR-10; activation and initialization are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxhash.zoo.building import OptionError, check_sizes

BLOCKS = (2, 6, 12)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel; shapes `(batch, channels, height, width)`."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalize each pixel."""
        return super().forward(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GatedBlock(nn.Module):
    """`scale * x + project(silu(gate(y)) * value(y))`, where `y` is `x` after depthwise convolutions and a norm.

    A quarter of the channels has a kernel of 3x3, one of 7x7, and one of 7x7 with dilation 3 over means of 3x3 pixels.

    Args:
        channels: of input and output, a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.near = nn.Conv2d(quarter, quarter, 3, padding=1, groups=quarter)
        self.wide = nn.Conv2d(quarter, quarter, 7, padding=3, groups=quarter)
        self.far = nn.Conv2d(quarter, quarter, 7, padding=9, dilation=3, groups=quarter)
        self.norm = ChannelNorm(channels)
        # Two convolutions, not the halves of one: its halves would not be contiguous with the channels last.
        self.gate = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Add the block's residual to its scaled input."""
        same, near, wide, far = images.chunk(4, dim=1)
        far = F.avg_pool2d(far, 3, stride=1, padding=1)
        mixed = self.norm(torch.cat((same, self.near(near), self.wide(wide), self.far(far)), dim=1))
        # In the type of the images: under autocast the product would be of float32, and all that follows.
        return self.project(F.silu(self.gate(mixed)) * self.value(mixed)) + images * self.scale.type_as(images)


class ConvNeXt(nn.Module):
    """A small network after ConvNeXt; `convnext` builds one.

    Shapes: images `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.
    """

    def __init__(self, blocks: int, num_classes: int, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        wider = width // 3 * 5
        self.stem = nn.Conv2d(in_channels, width, patch + 2, stride=patch, padding=1)
        self.stem_norm = ChannelNorm(width)
        self.stage1 = nn.Sequential(*(GatedBlock(width) for _ in range(blocks // 2)))
        self.reduction = nn.Conv2d(width, wider, 4, stride=2, padding=1, groups=math.gcd(width, wider))
        self.reduction_norm = ChannelNorm(wider)
        self.stage2 = nn.Sequential(*(GatedBlock(wider) for _ in range(blocks // 2)))
        self.fc = nn.Linear(wider, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch of images."""
        features = self.stage1(self.stem_norm(self.stem(images)))
        features = self.stage2(self.reduction_norm(self.reduction(features)))
        return self.fc(torch.mean(features, dim=(2, 3)))


def convnext(
    blocks: int = 6, *, num_classes: int = 10, in_channels: int = 3, width: int = 48, patch: int = 1
) -> ConvNeXt:
    """Build a small network after ConvNeXt: a stem and two stages of as many blocks, of which the second halves images.

    Args:
        blocks: number of blocks of both stages together; even.
        num_classes: number of logits.
        in_channels: channels of the input images.
        width: channels of the first stage, a multiple of 12; the second has 5/3 as many.
        patch: stride of the stem: with 2, all of the network works on images half as large, in a quarter of the time.

    Raises:
        OptionError: if `blocks` is odd, `width` is not a multiple of 12, or an argument is below 1.
        TypeError: if an argument is not an `int`.

    Example:
        >>> model = convnext(6, width=48)
        >>> sum(parameter.numel() for parameter in model.parameters())
        97530
    """
    check_sizes(blocks=blocks, num_classes=num_classes, in_channels=in_channels, width=width, patch=patch)
    if blocks % 2:
        raise OptionError(f"blocks must be even, as many in each of two stages, got {blocks}")
    if width % 12:
        raise OptionError(f"width must be a multiple of 12, got {width}")
    return ConvNeXt(blocks, num_classes, in_channels, width, patch)


MODELS: dict[str, Callable[..., nn.Module]] = {f"convnext{blocks}": partial(convnext, blocks) for blocks in BLOCKS}
