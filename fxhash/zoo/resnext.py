"""ResNeXt for CIFAR, as in section 5.3 of Xie et al., "Aggregated Residual Transformations for Deep Neural Networks"
(2016), https://arxiv.org/abs/1611.05431.

ResNeXt-29, `cardinality`x`width`d: a 3x3 stem of 64 channels and three stages of three bottlenecks each, whose
3x3 convolutions are in `cardinality` groups of `width` channels, twice as many from stage to stage.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxhash.zoo.building import check_sizes, convolution, start_convolutions

# Cardinality and width of a group.
SIZES = ((2, 64), (4, 64), (8, 64), (16, 64), (32, 4))


class ResNeXtBlock(nn.Module):
    """`relu(shortcut(x) + bottleneck(x))`, with a grouped 3x3 convolution between two of 1x1.

    Shapes: `(batch, in_channels, height, width)` to `(batch, out_channels, height, width)` over the stride.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(
            *convolution(in_channels, channels, 1),
            *convolution(channels, channels, 3, stride, groups),
            *convolution(channels, out_channels, 1, relu=False),
        )
        same_shape = stride == 1 and in_channels == out_channels
        projection = [] if same_shape else convolution(in_channels, out_channels, 1, stride, relu=False)
        self.shortcut = nn.Sequential(*projection)

    def forward(self, images: Tensor) -> Tensor:
        """Add the block's residual to its input."""
        return F.relu(self.shortcut(images) + self.bottleneck(images))


class ResNeXt(nn.Module):
    """A ResNeXt for small images; `resnext` builds one.

    Shapes: images `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.
    """

    def __init__(self, cardinality: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(in_channels, 64, 3))
        channels = 64
        blocks: list[nn.Module] = []
        for stage in range(3):
            out_channels = 256 * 2**stage
            for index in range(3):
                stride = 2 if stage > 0 and index == 0 else 1
                grouped = cardinality * width * 2**stage
                blocks.append(ResNeXtBlock(channels, grouped, out_channels, cardinality, stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        start_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch of images."""
        return self.fc(torch.mean(self.blocks(self.stem(images)), dim=(2, 3)))


def resnext(cardinality: int, width: int, *, num_classes: int = 10, in_channels: int = 3) -> ResNeXt:
    """Build ResNeXt-29.

    Args:
        cardinality: groups of the 3x3 convolutions.
        width: channels of a group in the first stage.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Raises:
        ValueError: if an argument is below 1.
        TypeError: if an argument is not an `int`.
    """
    check_sizes(cardinality=cardinality, width=width, num_classes=num_classes, in_channels=in_channels)
    return ResNeXt(cardinality, width, num_classes, in_channels)


MODELS: dict[str, Callable[..., nn.Module]] = {
    f"resnext29_{cardinality}x{width}d": partial(resnext, cardinality, width) for cardinality, width in SIZES
}
