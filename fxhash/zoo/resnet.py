"""Residual networks for small images, as in section 4.2 of He et al., "Deep Residual Learning for Image
Recognition" (2015), https://arxiv.org/abs/1512.03385.

A 3x3 stem is followed by three stages of `n` blocks of two 3x3 convolutions each, with `width`,
`2 * width` and `4 * width` channels; the second and third stage halve the image. The depth `6 * n + 2`
counts the convolutions on the main path and the classifier. Where the shape changes the shortcut is the
paper's option A: it has no parameters, so that every weight sits on the main path. `resnet_imagenet` has the
paper's other networks.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxhash.zoo.building import OptionError, check_sizes, start_convolutions

DEPTHS = (8, 14, 20, 32, 44, 56, 110)


class SubsampleAndPad(nn.Module):
    """Shortcut "option A": keep every `stride`-th pixel and add `new_channels` channels of zeros.

    Shapes: `(batch, channels, height, width)` to
    `(batch, channels + new_channels, ceil(height / stride), ceil(width / stride))`.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        # The zeros go to both sides of the channels, as even as can be.
        self.padding = (new_channels // 2, new_channels - new_channels // 2)
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """Subsample in space, pad in channels."""
        subsampled = images[:, :, :: self.stride, :: self.stride]
        return F.pad(subsampled, (0, 0, 0, 0, *self.padding))

    def extra_repr(self) -> str:
        """Show what the shortcut does in the module's printed form."""
        return f"padding={self.padding}, stride={self.stride}"


class BasicBlock(nn.Module):
    """`relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))`, both convolutions 3x3 without bias."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else SubsampleAndPad(out_channels - in_channels, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Add the block's residual to its input."""
        residual = F.relu(self.bn1(self.conv1(images)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(self.shortcut(images) + residual)


class ResNet(nn.Module):
    """A residual network for small images; `resnet` builds one from its depth.

    Shapes: images `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.
    """

    def __init__(self, blocks_per_stage: int, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stage1 = _stage(blocks_per_stage, width, width, stride=1)
        self.stage2 = _stage(blocks_per_stage, width, 2 * width, stride=2)
        self.stage3 = _stage(blocks_per_stage, 2 * width, 4 * width, stride=2)
        self.fc = nn.Linear(4 * width, num_classes)
        start_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch of images."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.stage3(self.stage2(self.stage1(features)))
        return self.fc(torch.mean(features, dim=(2, 3)))


def resnet(depth: int, *, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """Build the residual network for small images with `depth = 6 * n + 2` layers.

    Args:
        depth: number of weight layers on the main path: 8, 14, 20, 32, 44, 56, 110, or any other `6 * n + 2`.
        num_classes: number of logits.
        in_channels: channels of the input images, 3 for colour and 1 for grey.
        width: channels of the stem and of the first stage; 16 in the paper.

    Raises:
        OptionError: if `depth` is not `6 * n + 2` with `n >= 1`, or another argument is below 1.
        TypeError: if another argument is not an `int`.

    Example:
        >>> model = resnet(20)
        >>> sum(parameter.numel() for parameter in model.parameters())
        269722
    """
    if depth < 8 or (depth - 2) % 6:
        raise OptionError(f"depth must be 6 * n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    return ResNet((depth - 2) // 6, num_classes, in_channels, width)


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


MODELS: dict[str, Callable[..., nn.Module]] = {f"resnet{depth}": partial(resnet, depth) for depth in DEPTHS}
