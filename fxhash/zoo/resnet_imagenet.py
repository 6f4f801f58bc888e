"""The residual networks that He et al. made for ImageNet, with a stem for small images.

He et al., "Deep Residual Learning for Image Recognition" (2015), https://arxiv.org/abs/1512.03385. The layers
are torchvision's; a 3x3 convolution of stride 1 stands for its 7x7 of stride 2 and the pooling after it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fxhash.zoo.building import check_choice, check_sizes, replace_convolution, torchvision_module

DEPTHS = (18, 34, 50, 101, 152)


def resnet_imagenet(depth: int, *, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build torchvision's residual network of `depth` layers with a stem for small images.

    Args:
        depth: 18 or 34, of two 3x3 convolutions a block, or 50, 101 or 152, of bottlenecks.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.ResNet`: images `(batch, in_channels, height, width)` to logits
        `(batch, num_classes)`.

    Raises:
        ValueError: if there is no network of this depth, or another argument is below 1.
        TypeError: if another argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_choice("depth", depth, DEPTHS)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    model = torchvision_module("models").get_model(f"resnet{depth}", weights=None, num_classes=num_classes)
    replace_convolution(model, "conv1", in_channels, kernel_size=3)
    model.maxpool = nn.Identity()
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {f"resnet{depth}": partial(resnet_imagenet, depth) for depth in DEPTHS}
