"""RegNet, as in Radosavovic et al., "Designing Network Design Spaces" (2020), https://arxiv.org/abs/2003.13678.
The layers are torchvision's; the sizes are those of the paper's tables, as torchvision lacks the smallest and
rounds some widths up.

X stands for residual bottlenecks with grouped convolutions, Y for the same with squeeze and excitation. The stem
and the first stage have stride 1, so that an image is halved three times instead of five.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from fxhash.zoo.building import check_choice, check_sizes, replace_convolution, torchvision_module


class RegNetSizes(NamedTuple):
    """Blocks and channels of the four stages, and channels of a group, the same in all stages."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int


SIZES = {
    "x_200mf": RegNetSizes((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "x_400mf": RegNetSizes((1, 2, 7, 12), (32, 64, 160, 384), 16),
    "y_200mf": RegNetSizes((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "y_400mf": RegNetSizes((1, 3, 6, 6), (48, 104, 208, 440), 8),
}


def regnet(size: str, *, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build a RegNet with strides for small images.

    Args:
        size: "x_200mf", "x_400mf", "y_200mf" or "y_400mf", for the multiply-adds on an image of ImageNet.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.RegNet`: images `(batch, in_channels, height, width)` to logits
        `(batch, num_classes)`.

    Raises:
        ValueError: if there is no network of this size, or another argument is below 1.
        TypeError: if another argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_choice("size", size, SIZES)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    depths, widths, group_width = SIZES[size]
    torchvision = torchvision_module("models.regnet")
    parameters = torchvision.BlockParams(
        depths=list(depths),
        widths=list(widths),
        group_widths=[group_width] * 4,
        bottleneck_multipliers=[1.0] * 4,
        strides=[1, 2, 2, 2],
        se_ratio=0.25 if size.startswith("y") else None,
    )
    model = torchvision.RegNet(parameters, num_classes=num_classes)
    replace_convolution(model, "stem.0", in_channels)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {f"regnet_{size}": partial(regnet, size) for size in SIZES}
