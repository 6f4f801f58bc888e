"""EfficientNet, as in Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(2019), https://arxiv.org/abs/1905.11946. The layers are torchvision's.

The stem and the second stage have stride 1, so that an image is halved three times instead of five.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fxhash.zoo.building import check_choice, check_sizes, keep_resolution, replace_convolution, torchvision_module

SIZES = ("b0", "b1", "b2", "b3")


def efficientnet(size: str, *, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build torchvision's EfficientNet of one size with strides for small images.

    Args:
        size: "b0", "b1", "b2" or "b3".
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.EfficientNet`: images `(batch, in_channels, height, width)` to logits
        `(batch, num_classes)`.

    Raises:
        ValueError: if there is no network of this size, or another argument is below 1.
        TypeError: if another argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_choice("size", size, SIZES)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    model = torchvision_module("models").get_model(f"efficientnet_{size}", weights=None, num_classes=num_classes)
    replace_convolution(model, "features.0.0", in_channels)
    keep_resolution(model, "features.2.0.block.1.0")
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {f"efficientnet_{size}": partial(efficientnet, size) for size in SIZES}
