"""How far the outputs of one model are from those of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.capture.calibration import Batch


@dataclass(frozen=True)
class Figures:
    """How near the outputs of a model are to those of its teacher.

    Attributes:
        error: the sum of squared differences over that of the teacher's squares; 0 is perfect.
        cosine: the mean of the cosines along the last dimension; 1 is perfect.
    """

    error: float
    cosine: float


@torch.no_grad()
def compare(
    ours: Callable[[Batch], Sequence[Tensor]], theirs: Callable[[Batch], Sequence[Tensor]], batches: Iterable[Batch]
) -> Figures:
    """The figures of two models over all batches; each gives its outputs for a batch."""
    off = size = cosines = 0.0
    rows = 0
    for batch in batches:
        for one, other in zip(ours(batch), theirs(batch), strict=True):
            one, other = one.double(), other.to(one.device).double()
            off += (one - other).square().sum().item()
            size += other.square().sum().item()
            if other.dim():
                found = F.cosine_similarity(one, other, dim=-1)
                cosines, rows = cosines + found.sum().item(), rows + found.numel()
    return Figures(off / max(size, 1e-300), cosines / max(rows, 1))
