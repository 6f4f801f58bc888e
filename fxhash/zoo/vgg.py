"""VGG with batch norms, as in Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition" (2014), https://arxiv.org/abs/1409.1556. The convolutions are torchvision's.

All five poolings stay, which leave one pixel of 32; they round up, so that an image of 28 pixels works too. One linear
layer stands for the paper's three, as usual for small images, so that the depth in the name counts two layers that
aren't there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fxhash.zoo.building import check_choice, check_sizes, replace_convolution, torchvision_module

# Of each depth: the paper's letter.
DEPTHS = {11: "A", 13: "B", 16: "D", 19: "E"}


def vgg(depth: int, *, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build torchvision's VGG with one linear layer as classifier.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.VGG`: images `(batch, in_channels, height, width)` to logits
        `(batch, num_classes)`.

    Raises:
        ValueError: if there is no network of this depth, or another argument is below 1.
        TypeError: if another argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_choice("depth", depth, DEPTHS)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    torchvision = torchvision_module("models.vgg")
    features = torchvision.make_layers(torchvision.cfgs[DEPTHS[depth]], batch_norm=True)
    # The classifier for ImageNet, of 120 million parameters, is replaced: it takes no memory meanwhile.
    with torch.device("meta"):
        model = torchvision.VGG(features)
    replace_convolution(model, "features.0", in_channels)
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, num_classes)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {f"vgg{depth}": partial(vgg, depth) for depth in DEPTHS}
