"""MobileNetV2, as in Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018),
https://arxiv.org/abs/1801.04381. The layers are torchvision's.

The stem and the first block that would halve the image have stride 1, so that an image is halved three times
instead of five.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from fxhash.zoo.building import OptionError, check_sizes, keep_resolution, replace_convolution, torchvision_module


def mobilenet_v2(width_multiplier: float = 1.0, *, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build torchvision's MobileNetV2 with strides for small images.

    Args:
        width_multiplier: channels of all layers over those of the full network, rounded to multiples of 8; the last
            convolution has 1,280 at least.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.MobileNetV2`: images `(batch, in_channels, height, width)` to logits
        `(batch, num_classes)`.

    Raises:
        OptionError: if `width_multiplier` is below 1/32, or another argument below 1.
        TypeError: if another argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    if not width_multiplier >= 1 / 32:
        raise OptionError(f"width_multiplier must be at least 1/32, got {width_multiplier}")
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    model = torchvision_module("models").get_model(
        "mobilenet_v2", weights=None, num_classes=num_classes, width_mult=width_multiplier
    )
    replace_convolution(model, "features.0.0", in_channels)
    keep_resolution(model, "features.2.conv.1.0")
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {"mobilenet_v2": mobilenet_v2}
