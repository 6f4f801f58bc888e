"""PNASNet-5, as in Liu et al., "Progressive Neural Architecture Search" (2017), https://arxiv.org/abs/1712.00559.

A search found one cell: five sums of two operations each, side by side, on the outputs of the two cells before.
The network for CIFAR stacks it: a 3x3 convolution, then three groups of cells; the first cell of the second
and third group halves the image and doubles the channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxhash.zoo.building import OptionError, check_sizes, start_convolutions


class SeparableConvolutions(nn.Sequential):
    """Twice an activation, a convolution a channel, a 1x1 convolution and a batch norm; the first may subsample."""

    def __init__(self, channels: int, kernel_size: int, stride: int) -> None:
        layers: list[nn.Module] = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(),
                nn.Conv2d(channels, channels, kernel_size, step, padding=kernel_size // 2, groups=channels, bias=False),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            ]
        super().__init__(*layers)


class Projection(nn.Sequential):
    """An activation, a 1x1 convolution of `stride` and a batch norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )


class FactorizedReduction(nn.Module):
    """Halve an image by two 1x1 convolutions of stride 2, the second one pixel further, for half the channels each.

    Shapes: `(batch, in_channels, height, width)` to `(batch, out_channels, ceil(height / 2), ceil(width / 2))`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.here = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.there = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Reduce; beyond the image's edge are zeros."""
        images = F.relu(images)
        shifted = F.pad(images, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.bn(torch.cat((self.here(images), self.there(shifted)), dim=1))


class Cell(nn.Module):
    """The cell of PNASNet-5: from the outputs of the cell before and of the one before that to `5 * channels`.

    Args:
        previous_channels: channels of the output of the cell before the last.
        in_channels: channels of the output of the last cell.
        channels: channels of every operation.
        stride: 2 to halve the image.
        reduce_previous: whether the older input is twice as large as the newer one, and must be halved first.
    """

    def __init__(
        self, previous_channels: int, in_channels: int, channels: int, stride: int, reduce_previous: bool
    ) -> None:
        super().__init__()
        adapt = FactorizedReduction if reduce_previous else Projection
        self.adapt_previous = adapt(previous_channels, channels)
        self.adapt_last = Projection(in_channels, channels)
        self.previous_5x5 = SeparableConvolutions(channels, 5, stride)
        self.last_7x7 = SeparableConvolutions(channels, 7, stride)
        self.last_5x5 = SeparableConvolutions(channels, 5, stride)
        self.last_3x3 = SeparableConvolutions(channels, 3, stride)
        self.inner_3x3 = SeparableConvolutions(channels, 3, 1)
        self.previous_3x3 = SeparableConvolutions(channels, 3, stride)
        self.pool = nn.MaxPool2d(3, stride, padding=1)
        self.shortcut = Projection(channels, channels, stride) if stride > 1 else nn.Identity()

    def forward(self, previous: Tensor, last: Tensor) -> Tensor:
        """Compute the five sums."""
        previous, last = self.adapt_previous(previous), self.adapt_last(last)
        pooled = self.pool(last)
        inner = self.last_5x5(last) + self.last_3x3(last)
        sums = (
            self.previous_5x5(previous) + self.pool(previous),
            self.last_7x7(last) + pooled,
            inner,
            self.inner_3x3(inner) + pooled,
            self.previous_3x3(previous) + self.shortcut(last),
        )
        return torch.cat(sums, dim=1)


class PNASNet(nn.Module):
    """PNASNet-5 for small images; `pnasnet` builds one.

    Shapes: images `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.
    """

    def __init__(self, cells_per_group: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = 3 * width
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.cells = nn.ModuleList()
        previous_channels, reduced = channels, False
        for group in range(3):
            for index in range(cells_per_group):
                stride = 2 if group > 0 and index == 0 else 1
                self.cells.append(Cell(previous_channels, channels, width * 2**group, stride, reduced))
                previous_channels, channels, reduced = channels, 5 * width * 2**group, stride == 2
        self.fc = nn.Linear(channels, num_classes)
        start_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch of images."""
        previous = last = self.stem(images)
        for cell in self.cells:
            previous, last = last, cell(previous, last)
        return self.fc(torch.mean(F.relu(last), dim=(2, 3)))


def pnasnet(cells_per_group: int = 3, width: int = 48, *, num_classes: int = 10, in_channels: int = 3) -> PNASNet:
    """Build PNASNet-5.

    Args:
        cells_per_group: cells in each of the three groups, those of stride 2 among them, N in the paper.
        width: channels of an operation in the first group, F in the paper.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Raises:
        OptionError: if an argument is below 1, or `width` below 2.
        TypeError: if an argument is not an `int`.
    """
    check_sizes(cells_per_group=cells_per_group, width=width, num_classes=num_classes, in_channels=in_channels)
    if width < 2:
        # Half of them go through each convolution of the factorized reduction.
        raise OptionError(f"width must be at least 2, got {width}")
    return PNASNet(cells_per_group, width, num_classes, in_channels)


MODELS: dict[str, Callable[..., nn.Module]] = {"pnasnet5": pnasnet}
