"""What is done to images before a model sees them: normalization always, shifts and mirror images in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
