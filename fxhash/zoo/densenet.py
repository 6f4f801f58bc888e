"""Densely connected networks, as in Huang et al., "Densely Connected Convolutional Networks" (2016),
https://arxiv.org/abs/1608.06993. The layers are torchvision's.

Each layer takes the outputs of all layers before it in its block, and adds `growth` channels. The paper made
those of 121 to 201 layers for ImageNet: here they have a 3x3 convolution of stride 1 as stem and no pooling
after it. The one of 100 layers and growth 12 is the paper's own for CIFAR, DenseNet-BC: three blocks of 16.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fxhash.zoo.building import OptionError, check_choice, check_sizes, replace_convolution, torchvision_module

DEPTHS = (121, 161, 169, 201)


def densenet(depth: int, *, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build torchvision's DenseNet of `depth` layers with a stem for small images.

    Args:
        depth: 121, 161, 169 or 201.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.DenseNet`: images `(batch, in_channels, height, width)` to logits
        `(batch, num_classes)`.

    Raises:
        OptionError: if there is no network of this depth, or another argument is below 1.
        TypeError: if another argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_choice("depth", depth, DEPTHS)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    model = torchvision_module("models").get_model(f"densenet{depth}", weights=None, num_classes=num_classes)
    return _with_small_stem(model, in_channels)


def densenet_cifar(depth: int = 100, growth: int = 12, *, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build the DenseNet-BC of three blocks that the paper trains on CIFAR.

    Args:
        depth: number of layers, `6 * n + 4`: three blocks of `n` pairs of convolutions, the stem, two
            transitions and the classifier. The paper has 100, 190 and 250.
        growth: channels that each pair adds; the stem has twice as many. The paper has 12, 40 and 24.
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.DenseNet`, as `densenet` does.

    Raises:
        OptionError: if `depth` is not `6 * n + 4` with `n >= 1`, or another argument is below 1.
        TypeError: if another argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_sizes(growth=growth, num_classes=num_classes, in_channels=in_channels)
    if depth < 10 or (depth - 4) % 6:
        raise OptionError(f"depth must be 6 * n + 4 with n >= 1 (10, 16, 22, ...), got {depth}")
    layers = ((depth - 4) // 6,) * 3
    build = torchvision_module("models").DenseNet
    model = build(growth_rate=growth, block_config=layers, num_init_features=2 * growth, num_classes=num_classes)
    return _with_small_stem(model, in_channels)


def _with_small_stem(model: Any, in_channels: int) -> Any:
    replace_convolution(model, "features.conv0", in_channels, kernel_size=3)
    model.features.pool0 = nn.Identity()
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {
    "densenet_cifar": densenet_cifar,
    **{f"densenet{depth}": partial(densenet, depth) for depth in DEPTHS},
}
