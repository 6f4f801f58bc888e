"""Dual path networks, as in Chen et al., "Dual Path Networks" (2017), https://arxiv.org/abs/1707.01629.

A block's output has two parts: the first is added to the input's, as in a residual network, and the second is
appended to it, as in a densely connected one. The order in a block is pre-activation: batch norm, activation,
convolution. The stem is a 3x3 convolution of stride 1 instead of the paper's 7x7 and pooling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fxhash.zoo.building import (
    PreactivationNetwork,
    activated_convolution,
    check_choice,
    check_sizes,
    convolution,
)


@dataclass(frozen=True)
class DualPathSizes:
    """The sizes of one network, a number a stage, as in table 1 of the paper.

    Example: DPN-92 has blocks `(3, 4, 20, 3)` whose grouped convolutions have `(96, 192, 384, 768)` channels.

    Attributes:
        stem: channels of the stem.
        groups: groups of the 3x3 convolutions.
        width: channels of the 3x3 convolutions in the first stage; they double from stage to stage.
        blocks: blocks of each stage.
        growth: channels that a block of each stage appends; the first one appends three times as many.
    """

    stem: int
    groups: int
    width: int
    blocks: tuple[int, ...]
    growth: tuple[int, ...]


SIZES = {
    26: DualPathSizes(64, 32, 96, blocks=(2, 2, 2, 2), growth=(16, 32, 24, 128)),
    92: DualPathSizes(64, 32, 96, blocks=(3, 4, 20, 3), growth=(16, 32, 24, 128)),
    98: DualPathSizes(96, 40, 160, blocks=(3, 6, 20, 3), growth=(16, 32, 32, 128)),
}


class DualPathBlock(nn.Module):
    """One block: the first `residual` channels are added to, `growth` channels are appended.

    The first block of a stage projects its input to `residual + 2 * growth` channels before; with it, `stride`
    may subsample the image.

    Shapes: `(batch, in_channels, height, width)` to `(batch, out_channels, height, width)` over the stride.
    """

    def __init__(
        self, in_channels: int, width: int, residual: int, growth: int, groups: int, stride: int, first: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.projection = (
            nn.Sequential(*activated_convolution(in_channels, residual + 2 * growth, 1, stride))
            if first
            else nn.Identity()
        )
        self.out_channels = (residual + 2 * growth if first else in_channels) + growth
        self.branch = nn.Sequential(
            *activated_convolution(in_channels, width, 1),
            *activated_convolution(width, width, 3, stride, groups),
            *activated_convolution(width, residual + growth, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Add to the one path, append to the other."""
        shortcut, new = self.projection(images), self.branch(images)
        added = shortcut[:, : self.residual] + new[:, : self.residual]
        return torch.cat((added, shortcut[:, self.residual :], new[:, self.residual :]), dim=1)


class DPN(PreactivationNetwork):
    """A dual path network for small images; `dpn` builds one from its depth.

    Shapes: images `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.
    """

    def __init__(self, sizes: DualPathSizes, num_classes: int, in_channels: int) -> None:
        stem = nn.Sequential(*convolution(in_channels, sizes.stem, 3))
        channels = sizes.stem
        blocks: list[nn.Module] = []
        for stage, (count, growth) in enumerate(zip(sizes.blocks, sizes.growth, strict=True)):
            for index in range(count):
                block = DualPathBlock(
                    channels,
                    width=sizes.width * 2**stage,
                    residual=256 * 2**stage,
                    growth=growth,
                    groups=sizes.groups,
                    stride=2 if stage > 0 and index == 0 else 1,
                    first=index == 0,
                )
                blocks.append(block)
                channels = block.out_channels
        super().__init__(stem, blocks, channels, num_classes)


def dpn(depth: int, *, num_classes: int = 10, in_channels: int = 3) -> DPN:
    """Build the dual path network of `depth` layers.

    Args:
        depth: 92 or 98, as in the paper, or 26: the sizes of 92 with two blocks a stage.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Raises:
        ValueError: if there is no network of this depth, or another argument is below 1.
        TypeError: if another argument is not an `int`.
    """
    check_choice("depth", depth, SIZES)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    return DPN(SIZES[depth], num_classes, in_channels)


MODELS: dict[str, Callable[..., nn.Module]] = {f"dpn{depth}": partial(dpn, depth) for depth in SIZES}
