"""MobileNetV2, as in Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018),
https://arxiv.org/abs/1801.04381. The layers are torchvision's.

The stem and the first block that would halve the image have stride 1, so that an image is halved three times
instead of five.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from fxhash.zoo.building import check_sizes, keep_resolution, replace_convolution, torchvision_module


def mobilenet_v2(*, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build torchvision's MobileNetV2 with strides for small images.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.MobileNetV2`: images `(batch, in_channels, height, width)` to logits
        `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is below 1.
        TypeError: if an argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    model = torchvision_module("models").get_model("mobilenet_v2", weights=None, num_classes=num_classes)
    replace_convolution(model, "features.0.0", in_channels)
    keep_resolution(model, "features.2.conv.1.0")
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {"mobilenet_v2": mobilenet_v2}
