"""ShuffleNetV2, as in Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (2018),
https://arxiv.org/abs/1807.11164. The layers are torchvision's.

The stem has stride 1 and no pooling follows it, so that an image is halved three times instead of five.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fxhash.zoo.building import check_choice, check_sizes, replace_convolution, torchvision_module

SIZES = ("x0_5", "x1_0", "x1_5", "x2_0")


def shufflenet_v2(size: str, *, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build torchvision's ShuffleNetV2 of one size with a stem for small images.

    Args:
        size: "x0_5", "x1_0", "x1_5" or "x2_0", for the channels over those of the plain network.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.ShuffleNetV2`: images `(batch, in_channels, height, width)` to logits
        `(batch, num_classes)`.

    Raises:
        ValueError: if there is no network of this size, or another argument is below 1.
        TypeError: if another argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_choice("size", size, SIZES)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    model = torchvision_module("models").get_model(f"shufflenet_v2_{size}", weights=None, num_classes=num_classes)
    replace_convolution(model, "conv1.0", in_channels)
    model.maxpool = nn.Identity()
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {f"shufflenet_v2_{size}": partial(shufflenet_v2, size) for size in SIZES}
