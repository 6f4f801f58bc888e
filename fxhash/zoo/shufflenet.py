"""ShuffleNet, as in Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices"
(2017), https://arxiv.org/abs/1707.01083.

The 1x1 convolutions are in groups too, and a shuffle in between lets each group see channels of all others.
The stem has stride 1 and no pooling follows it, so that an image is halved three times instead of five.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxhash.zoo.building import check_choice, check_sizes, convolution, start_convolutions

# Of each number of groups: the output channels of the first stage, from table 1 of the paper.
CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}


class ChannelShuffle(nn.Module):
    """Deal out the channels of `groups` groups in turn: channel `i` of group `g` becomes `i * groups + g`.

    Shapes: `(batch, channels, height, width)` to the same.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, images: Tensor) -> Tensor:
        """Swap groups and channels within a group."""
        return images.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        """Show the groups in the module's printed form."""
        return f"groups={self.groups}"


class ShuffleNetUnit(nn.Module):
    """`relu(x + branch(x))`, or of stride 2, the average-pooled `x` and `branch(x)` one after the other.

    The branch is a grouped 1x1 convolution, a shuffle, a 3x3 convolution a channel and a grouped 1x1
    convolution; a quarter of `out_channels` is inside.

    Shapes: `(batch, in_channels, height, width)` to `(batch, out_channels, height, width)` over the stride.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        inside = out_channels // 4
        self.stride = stride
        self.branch = nn.Sequential(
            *convolution(in_channels, inside, 1, groups=first_groups),
            ChannelShuffle(groups),
            *convolution(inside, inside, 3, stride, groups=inside, relu=False),
            *convolution(inside, out_channels - in_channels * (stride - 1), 1, groups=groups, relu=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Add the branch, or append it."""
        if self.stride == 1:
            return F.relu(images + self.branch(images))
        pooled = F.avg_pool2d(images, 3, stride=2, padding=1)
        return F.relu(torch.cat((pooled, self.branch(images)), dim=1))


class ShuffleNet(nn.Module):
    """A ShuffleNet for small images; `shufflenet` builds one.

    Shapes: images `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.
    """

    def __init__(self, groups: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = 24
        self.stem = nn.Sequential(*convolution(in_channels, channels, 3))
        units: list[nn.Module] = []
        for stage, count in enumerate((4, 8, 4)):
            out_channels = CHANNELS[groups] * 2**stage
            for index in range(count):
                # The paper does not group the very first 1x1 convolution: its input has few channels.
                first_groups = groups if units else 1
                units.append(ShuffleNetUnit(channels, out_channels, 2 if index == 0 else 1, groups, first_groups))
                channels = out_channels
        self.units = nn.Sequential(*units)
        self.fc = nn.Linear(channels, num_classes)
        start_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch of images."""
        return self.fc(torch.mean(self.units(self.stem(images)), dim=(2, 3)))


def shufflenet(groups: int, *, num_classes: int = 10, in_channels: int = 3) -> ShuffleNet:
    """Build a ShuffleNet.

    Args:
        groups: groups of the 1x1 convolutions, 1, 2, 3, 4 or 8. The more groups, the more channels.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Raises:
        ValueError: if there is no network of so many groups, or another argument is below 1.
        TypeError: if another argument is not an `int`.
    """
    check_choice("groups", groups, CHANNELS)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    return ShuffleNet(groups, num_classes, in_channels)


MODELS: dict[str, Callable[..., nn.Module]] = {
    f"shufflenet_g{groups}": partial(shufflenet, groups) for groups in CHANNELS
}
