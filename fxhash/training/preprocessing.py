"""What is done to images before a model sees them: normalization always, all else in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxhash.errors import TrainingError


class ReadsBytes(nn.Module):
    """A model with the normalization of its images before it.

    Args:
        model: maps normalized images to logits.
        mean: of each channel, where white is 1.
        std: the standard deviation in the same form.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images of bytes."""
        return self.model(normalized(images, self.mean, self.std))


def normalized(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images of bytes as numbers of about zero mean and unit variance.

    Args:
        images: `(batch, channels, height, width)`.
        mean: of each channel, where white is 1; shape `(channels, 1, 1)`.
        std: the standard deviation in the same form.
    """
    return (images.to(mean.dtype) / 255 - mean) / std


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image shifted by up to `most` pixels in both directions, black where nothing was.

    Args:
        images: `(batch, channels, height, width)`.
        most: largest shift.
    """
    if not most:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (most, most, most, most))
    rows = torch.randint(2 * most + 1, (batch, 1), device=images.device) + torch.arange(height, device=images.device)
    columns = torch.randint(2 * most + 1, (batch, 1), device=images.device) + torch.arange(width, device=images.device)
    which = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    plane = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[which, plane, rows.view(batch, 1, height, 1), columns.view(batch, 1, 1, width)]


def mirrored_at_random(images: Tensor) -> Tensor:
    """Each image or its mirror image, one as likely as the other."""
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def rotated(images: Tensor, most: float) -> Tensor:
    """Each image turned about its centre by up to `most` degrees either way, mirrored beyond its border.

    Args:
        images: `(batch, channels, height, width)`, of bytes.
        most: largest angle in degrees.

    Returns:
        Images of the same shape, as floating-point numbers from 0 to 255.
    """
    images = images.float()
    if not most:
        return images
    height, width = images.shape[2:]
    angles = (2 * torch.rand(len(images), device=images.device) - 1) * math.radians(most)
    cos, sin, none = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # The coordinates of a grid go from -1 to 1 along both sides, whatever their lengths.
    rows = [torch.stack((cos, -sin * height / width, none), 1), torch.stack((sin * width / height, cos, none), 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing(mixup: float, cutmix: float, classes: int) -> Mixing | None:
    """What mixes the images of a batch, and their labels; torchvision's.

    Args:
        mixup: parameter of the beta distribution of the shares in weighted means of two images (Zhang et al., arXiv
            1710.09412); 0 for none.
        cutmix: the same for a rectangle that is taken from another image (Yun et al., arXiv 1905.04899); with both,
            each batch has one of them, as likely as the other.
        classes: how many there are.

    Returns:
        A function of floating-point images `(batch, channels, height, width)` and labels `(batch,)` that gives images
        and `(batch, classes)` shares of labels; None without either.

    Raises:
        TrainingError: if torchvision is not installed.
    """
    if not mixup and not cutmix:
        return None
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise TrainingError('--mixup and --cutmix need torchvision; to get it: pip install "fxhash[zoo]"') from error
    chosen = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
    chosen += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
    return v2.RandomChoice(chosen)
