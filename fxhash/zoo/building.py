"""What the families share: checked arguments, torchvision on demand, and stems for small images.

Networks made for ImageNet halve an image five times, from 224 pixels a side to 7; of 32 pixels one would be
left. Unless a family says otherwise, the zoo leaves out the first two halvings, which belong to the stem or
come right after it, so that 32 pixels a side end as 4.
"""

import importlib
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxhash.errors import FxhashError, shown

_LARGEST_SIZE = 2**24


class OptionError(FxhashError, ValueError):
    """An option of a model that can't be: of a size below 1, or none of those that a family has."""


class MissingTorchvisionError(FxhashError, ImportError):
    """The model is adapted from torchvision's, and torchvision is not installed."""


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that are no whole numbers, below 1, or beyond any model for small images.

    Raises:
        TypeError: if a size is not an `int`.
        OptionError: if a size is below 1 or above 2**24.

    Example:
        >>> check_sizes(num_classes=10, in_channels=3)
    """
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {shown(value)}")
        if value < 1:
            raise OptionError(f"{name} must be at least 1, got {shown(value)}")
        if value > _LARGEST_SIZE:
            raise OptionError(f"{name} must be at most {_LARGEST_SIZE}, got {shown(value)}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse a value that is not among those that a family has.

    Raises:
        OptionError: naming the choices.
    """
    # By type first: what is no number or string may refuse to be compared.
    if not isinstance(value, tuple({type(choice) for choice in choices})) or value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(map(str, choices))}, got {shown(value)}")


def torchvision_module(name: str) -> Any:
    """Import `torchvision.<name>`.

    Raises:
        MissingTorchvisionError: if torchvision is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise MissingTorchvisionError(
            'this model is adapted from torchvision, which is not installed; to get it: pip install "fxhash[zoo]"'
        ) from error
    return importlib.import_module(f"torchvision.{name}")


def replace_convolution(
    model: nn.Module, fqn: str, in_channels: int, kernel_size: int | None = None, stride: int = 1
) -> None:
    """Put a convolution of another kernel, stride or number of input channels in the place of one of `model`'s.

    The output channels and whether there is a bias stay; the padding keeps the size of the image at stride 1.
    The weights start as in He et al. 2015; a batch norm follows wherever this is used, which makes up for any
    other scale.

    Args:
        model: the model, changed in place.
        fqn: name of the convolution.
        in_channels: channels of its input.
        kernel_size: side of its kernel; None keeps it.
        stride: its stride.
    """
    old = model.get_submodule(fqn)
    assert isinstance(old, nn.Conv2d)
    side = old.kernel_size[0] if kernel_size is None else kernel_size
    bias = old.bias is not None
    new = nn.Conv2d(in_channels, old.out_channels, side, stride=stride, padding=side // 2, bias=bias)
    start_convolutions(new)
    parent, _, name = fqn.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def keep_resolution(model: nn.Module, *fqns: str) -> None:
    """Set the strides of these convolutions of `model` to 1, in place."""
    for fqn in fqns:
        convolution = model.get_submodule(fqn)
        assert isinstance(convolution, nn.Conv2d)
        convolution.stride = (1, 1)


def start_convolutions(model: nn.Module) -> None:
    """Draw the weights of all convolutions as in He et al. 2015, https://arxiv.org/abs/1502.01852, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, *, relu: bool = True
) -> list[nn.Module]:
    """Layers of a convolution without bias, its batch norm and, with `relu`, its activation.

    The padding is such that the image keeps its size at stride 1.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return [*layers, nn.ReLU()] if relu else layers


def activated_convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Layers of a batch norm, an activation and then a convolution without bias: the order of pre-activation."""
    return [
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False),
    ]


class PreactivationNetwork(nn.Module):
    """A network whose blocks end without activation: a stem, blocks, then batch norm, activation, mean and classifier.

    Shapes: images `(batch, in_channels, height, width)` to logits `(batch, num_classes)`.
    """

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        start_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch of images."""
        features = F.relu(self.bn(self.blocks(self.stem(images))))
        return self.fc(torch.mean(features, dim=(2, 3)))
