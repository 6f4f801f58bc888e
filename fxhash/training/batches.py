"""Batches of images in memory, in an order that a seed determines, divided among the processes that train together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class Batch(NamedTuple):
    """Images and labels that one process works on in a step.

    Attributes:
        images: `(count, channels, height, width)`, uint8.
        labels: `(count,)`.
        weight: by which means over this batch are multiplied, so that the mean of that over all processes is the mean
            over all of their images: 1 where all have equally many, 0 where the images are another process's.
        of_all: how many images all processes together have in the step; None for those of this batch.
    """

    images: Tensor
    labels: Tensor
    weight: float = 1.0
    of_all: int | None = None


class Share(NamedTuple):
    """The images of a step that are one process's: their positions in the data set; the rest as in `Batch`."""

    positions: Tensor
    weight: float
    of_all: int


class Shares(Sampler[Share]):
    """One process's share of each batch; the shares of all processes are exactly the batches of a single one.

    No image is left out or taken twice. `DistributedSampler` takes some twice, so that all processes have equally many:
    then the last step is not that of a single process. Where a batch has fewer images than there are processes, a
    process without any gets the first image with weight 0, because it has to take part in the step.

    Args:
        images: how many images the data set has.
        batch_size: images a step, over all processes together.
        processes: how many processes there are.
        rank: which of them this is, from 0.
        seed: for an order that is drawn anew in each epoch; None for the order of the data set.

    Example:
        >>> for rank in range(2):
        ...     print([(share.positions.tolist(), round(share.weight, 2)) for share in Shares(7, 4, 2, rank)])
        [([0, 2], 1.0), ([4, 6], 1.33)]
        [([1, 3], 1.0), ([5], 0.67)]
    """

    def __init__(
        self, images: int, batch_size: int, processes: int = 1, rank: int = 0, seed: int | None = None
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.processes = processes
        self.rank = rank
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[Share]:
        for batch in self._order().split(self.batch_size):
            own = batch[self.rank :: self.processes]
            if len(own):
                yield Share(own, len(own) * self.processes / len(batch), len(batch))
            else:
                yield Share(batch[:1], 0.0, len(batch))

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(self.images)
        return torch.randperm(self.images, generator=torch.Generator().manual_seed(self.seed + self.epoch))


class _Images(Dataset[Batch]):
    """Images and labels by shares of batches: one indexing a step."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __getitem__(self, share: Share) -> Batch:
        return Batch(self.images[share.positions], self.labels[share.positions], share.weight, share.of_all)


def load_batches(
    images: Tensor, labels: Tensor, batch_size: int, processes: int = 1, rank: int = 0, seed: int | None = None
) -> DataLoader[Any]:
    """A loader of one process's `Batch` for each step.

    Args:
        images: `(count, channels, height, width)`.
        labels: `(count,)`.
        batch_size: images a step, over all processes together.
        processes: how many processes there are.
        rank: which of them this is, from 0.
        seed: for an order that is drawn anew in each epoch; None for the order of the images.
    """
    shares = Shares(len(labels), batch_size, processes, rank, seed)
    return DataLoader(_Images(images, labels), batch_size=None, sampler=shares)
