"""Squeeze-and-excitation networks, as in Hu et al., "Squeeze-and-Excitation Networks" (2017),
https://arxiv.org/abs/1709.01507.

Each block of a residual network scales the channels of its residual by gates between 0 and 1. The gates come
from the channels' means, through two layers of which the first has a sixteenth of the channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fxhash.zoo.building import torchvision_module
from fxhash.zoo.resnet_imagenet import resnet_imagenet

DEPTHS = (18, 34, 50)

REDUCTION = 16


def senet(depth: int, *, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build a residual network with squeeze and excitation in every block, and a stem for small images.

    Args:
        depth: 18, 34 or 50; 101 and 152 work too.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.ResNet` with the gates after the last batch norm of each residual: images
        `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.

    Raises:
        ValueError: if there is no network of this depth, or another argument is below 1.
        TypeError: if another argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    model = resnet_imagenet(depth, num_classes=num_classes, in_channels=in_channels)
    gates = torchvision_module("ops").SqueezeExcitation
    last_norm = "bn2" if depth < 50 else "bn3"
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            norm = getattr(block, last_norm)
            channels = norm.num_features
            setattr(block, last_norm, nn.Sequential(norm, gates(channels, channels // REDUCTION)))
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {f"senet{depth}": partial(senet, depth) for depth in DEPTHS}
