"""MobileNet, as in Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications" (2017), https://arxiv.org/abs/1704.04861.

Each block is a 3x3 convolution a channel and a 1x1 convolution across channels. The stem and the first block
that would halve the image have stride 1, so that an image is halved three times instead of five.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fxhash.zoo.building import OptionError, check_sizes, convolution, start_convolutions

# Output channels and stride of every block, from table 1 of the paper.
BLOCKS = ((64, 1), (128, 1), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class MobileNet(nn.Module):
    """A MobileNet for small images; `mobilenet` builds one.

    Shapes: images `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.
    """

    def __init__(self, width_multiplier: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = int(32 * width_multiplier)
        layers = convolution(in_channels, channels, 3)
        for unscaled, stride in BLOCKS:
            out_channels = int(unscaled * width_multiplier)
            layers += convolution(channels, channels, 3, stride, groups=channels)
            layers += convolution(channels, out_channels, 1)
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        start_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch of images."""
        return self.fc(torch.mean(self.features(images), dim=(2, 3)))


def mobilenet(width_multiplier: float = 1.0, *, num_classes: int = 10, in_channels: int = 3) -> MobileNet:
    """Build a MobileNet.

    Args:
        width_multiplier: channels of all layers over those of the full network, which starts with 32; the
            paper has 1, 0.75, 0.5 and 0.25.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Raises:
        OptionError: if no channel would be left in the stem, or another argument is below 1.
        TypeError: if another argument is not an `int`.
    """
    if not width_multiplier >= 1 / 32:
        raise OptionError(f"width_multiplier must be at least 1/32, got {width_multiplier}")
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    return MobileNet(width_multiplier, num_classes, in_channels)


MODELS: dict[str, Callable[..., nn.Module]] = {"mobilenet": mobilenet}
