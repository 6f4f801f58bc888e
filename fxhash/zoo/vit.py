"""A small vision transformer, as in Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image
Recognition at Scale" (2020), https://arxiv.org/abs/2010.11929. The layers are torchvision's.

The size is DeiT-Ti of Touvron et al., "Training data-efficient image transformers" (2020),
https://arxiv.org/abs/2012.12877: 12 layers of 3 heads and 192 channels; patches are of 4x4 pixels.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from fxhash.zoo.building import OptionError, check_sizes, torchvision_module


def vit_tiny(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, patch_size: int = 4) -> Any:
    """Build a small vision transformer.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input images.
        image_size: side of the images, which all must have.
        patch_size: side of a patch.

    Returns:
        A `torchvision.models.VisionTransformer`: images `(batch, in_channels, image_size, image_size)` to
        logits `(batch, num_classes)`.

    Raises:
        OptionError: if `image_size` is not a multiple of `patch_size`, or an argument is below 1.
        TypeError: if an argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch_size=patch_size)
    if image_size % patch_size:
        raise OptionError(f"image_size must be a multiple of patch_size, got {image_size} and {patch_size}")
    model = torchvision_module("models").VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        num_classes=num_classes,
    )
    model.conv_proj = nn.Conv2d(in_channels, 192, patch_size, stride=patch_size)
    nn.init.trunc_normal_(model.conv_proj.weight, std=math.sqrt(1 / (in_channels * patch_size**2)))
    nn.init.zeros_(model.conv_proj.bias)
    # torchvision's starts at zero, and would pass no gradient on at the first step. 0.02 is DeiT's.
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {"vit_tiny": vit_tiny}
