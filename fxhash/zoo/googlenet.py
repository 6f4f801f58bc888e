"""GoogLeNet, as in Szegedy et al., "Going Deeper with Convolutions" (2014), https://arxiv.org/abs/1409.4842.
The layers are torchvision's, which have batch norms, and no auxiliary classifiers.

A 3x3 convolution of stride 1 stands for the 7x7 of stride 2, and the first pooling is left out, so that an
image is halved three times instead of five.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from fxhash.zoo.building import check_sizes, replace_convolution, torchvision_module


def googlenet(*, num_classes: int = 10, in_channels: int = 3) -> Any:
    """Build torchvision's GoogLeNet with a stem for small images.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input images.

    Returns:
        A `torchvision.models.GoogLeNet`: images `(batch, in_channels, height, width)` to logits
        `(batch, num_classes)`, also in training.

    Raises:
        ValueError: if an argument is below 1.
        TypeError: if an argument is not an `int`.
        MissingTorchvisionError: if torchvision is not installed.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    build = torchvision_module("models").get_model
    model = build("googlenet", weights=None, num_classes=num_classes, aux_logits=False, init_weights=True)
    replace_convolution(model, "conv1.conv", in_channels, kernel_size=3)
    model.maxpool1 = nn.Identity()
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {"googlenet": googlenet}
