"""Pre-activation residual networks, as in He et al., "Identity Mappings in Deep Residual Networks" (2016),
https://arxiv.org/abs/1603.05027.

Batch norm and activation come before each convolution, so that a signal reaches any block unchanged through the
shortcuts. Networks of 110 and 164 layers are the paper's own for CIFAR, with three stages of 16, 32 and 64
channels; those of 18 to 152 layers have the sizes of the ImageNet networks and a 3x3 convolution as stem.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fxhash.zoo.building import PreactivationNetwork, activated_convolution, check_choice, check_sizes

# Of each depth: the blocks of each stage, the channels of the first stage, and whether blocks are bottlenecks.
DEPTHS = {
    18: ((2, 2, 2, 2), 64, False),
    34: ((3, 4, 6, 3), 64, False),
    50: ((3, 4, 6, 3), 64, True),
    101: ((3, 4, 23, 3), 64, True),
    110: ((18, 18, 18), 16, False),
    152: ((3, 8, 36, 3), 64, True),
    164: ((18, 18, 18), 16, True),
}


class PreactivationBlock(nn.Module):
    """`x + residual(relu(bn(x)))`; where the shape changes, a 1x1 convolution of `relu(bn(x))` stands for `x`.

    The residual is of two 3x3 convolutions, or of 1x1, 3x3 and 1x1 if it is a bottleneck, with batch norm and
    activation between any two.

    Shapes: `(batch, in_channels, height, width)` to `(batch, out_channels, height, width)` over the stride,
    where `out_channels` is `channels`, or four times as many if it is a bottleneck.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.out_channels = 4 * channels if bottleneck else channels
        self.bn = nn.BatchNorm2d(in_channels)
        if bottleneck:
            self.residual = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, bias=False),
                *activated_convolution(channels, channels, 3, stride),
                *activated_convolution(channels, self.out_channels, 1),
            )
        else:
            self.residual = nn.Sequential(
                nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
                *activated_convolution(channels, channels, 3),
            )
        same_shape = stride == 1 and in_channels == self.out_channels
        self.projection = None if same_shape else nn.Conv2d(in_channels, self.out_channels, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Add the block's residual to its input."""
        activated = F.relu(self.bn(images))
        shortcut = images if self.projection is None else self.projection(activated)
        return shortcut + self.residual(activated)


class PreactivationResNet(PreactivationNetwork):
    """A pre-activation residual network for small images; `preact_resnet` builds one from its depth.

    Shapes: images `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.
    """

    def __init__(
        self, blocks: tuple[int, ...], width: int, bottleneck: bool, num_classes: int, in_channels: int
    ) -> None:
        stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        channels = width
        layers: list[nn.Module] = []
        for stage, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                block = PreactivationBlock(channels, width * 2**stage, stride, bottleneck)
                layers.append(block)
                channels = block.out_channels
        super().__init__(stem, layers, channels, num_classes)


def preact_resnet(depth: int, *, num_classes: int = 10, in_channels: int = 3) -> PreactivationResNet:
    """Build the pre-activation residual network of `depth` layers.

    Args:
        depth: 18, 34, 50, 101, 110, 152 or 164.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Raises:
        ValueError: if there is no network of this depth, or another argument is below 1.
        TypeError: if another argument is not an `int`.
    """
    check_choice("depth", depth, DEPTHS)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    return PreactivationResNet(*DEPTHS[depth], num_classes, in_channels)


MODELS: dict[str, Callable[..., nn.Module]] = {
    f"preact_resnet{depth}": partial(preact_resnet, depth) for depth in DEPTHS
}
