"""Ranks by what they save: a rank more for the weight whose loss falls most by it, for each parameter that it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxhash.smh.factored_weight import FactoredWeight
from fxhash.smh.weight_target import cholesky

# Numbers of rows of `right` that are tried.
_TRIED = 64


def rank_gains(weight: FactoredWeight, right: Tensor) -> Tensor:
    """The loss of a weight that each row of `right` removes, after the rows before it.

    One Cholesky decomposition gives all: with rows of `right` in their order, each solves for what is left of `wanted`.

    Args:
        weight: what is to be generated; its own rank doesn't count.
        right: shape `(ranks, cols)`.

    Returns:
        Shape `(ranks,)`, in float64; zeros for a weight without importance.
    """
    gains = right.new_zeros(len(right), dtype=torch.float64)
    if not weight.target.importance:
        return gains
    for system in weight.systems(right):
        # From segments of an output channel, and their ranks, to ranks and their segments.
        order = torch.arange(len(system.normal), device=right.device).view(-1, len(right)).T.flatten()
        factor = cholesky(system.normal[order][:, order])
        solved = torch.linalg.solve_triangular(factor, system.wanted[:, order].T.double(), upper=False)
        gains += solved.square().sum(1).view(len(right), -1).sum(1)
    return gains


@dataclass(frozen=True)
class ChosenRanks:
    """Ranks for some weights, and what they save.

    Attributes:
        of_right: how many rows `right` has.
        ranks: of each weight.
        more_rows: how many rows of each weight have one more.
        parameters: of `left` and `right`.
        saved: the loss that they remove, beyond what rank 1 does.
    """

    of_right: int
    ranks: tuple[int, ...]
    more_rows: tuple[int, ...]
    parameters: int
    saved: float


def choose_ranks(
    gains: Sequence[Sequence[float]], rows: Sequence[int], cols: int, budget: int, of_right: int
) -> ChosenRanks:
    """The ranks, and the number of rows of `right`, that remove most loss for so many parameters of both factors.

    Args:
        gains: of each weight, the loss that each of its ranks removes; as many as it may have.
        rows: of `left` that each weight takes.
        cols: of `right`.
        budget: the number of parameters of `left` and `right`.
        of_right: rows of `right` with which the budget can be used up; others are tried too.

    Example:
        >>> choose_ranks([[9.0, 6.0, 1.0], [9.0, 5.0, 0.0]], rows=[2, 1], cols=4, budget=14, of_right=2)
        ChosenRanks(of_right=2, ranks=(2, 2), more_rows=(0, 0), parameters=14, saved=11.0)
    """
    most = max(len(each) for each in gains)
    tried = {*range(1, most + 1, -(-most // _TRIED)), most, of_right}
    return max(
        (ranks_within(gains, rows, cols, budget, rank) for rank in tried if sum(rows) + rank * cols <= budget),
        key=_worth,
    )


def ranks_within(
    gains: Sequence[Sequence[float]], rows: Sequence[int], cols: int, budget: int, of_right: int
) -> ChosenRanks:
    """The ranks for so many rows of `right`, or for fewer where some are of no use.

    Ranks are given by the loss that they remove a parameter. One that removes more than the one before it counts
    together with that. Where gains fall from rank to rank, no other ranks of as many parameters remove more, if some
    rows of a rank remove their share of what it removes.

    Args:
        gains: as of `choose_ranks`, as are `rows`, `cols` and `budget`.
        of_right: rows of `right`.

    Example:
        >>> ranks_within([[9.0, 6.0, 1.0], [9.0, 5.0, 0.0]], rows=[2, 1], cols=4, budget=13, of_right=2)
        ChosenRanks(of_right=2, ranks=(1, 2), more_rows=(1, 0), parameters=13, saved=8.0)
    """
    slopes = [_falling(each[1:of_right]) / count for each, count in zip(gains, rows, strict=True)]
    slope = np.concatenate(slopes)
    of_weight = np.repeat(np.arange(len(rows)), [len(each) for each in slopes])
    steps = of_weight[np.argsort(-slope, kind="stable")]
    left_over = budget - of_right * cols - sum(rows)
    within = int(np.searchsorted(np.cumsum(np.array(rows)[steps]), left_over, side="right"))
    ranks = 1 + np.bincount(steps[:within], minlength=len(rows))
    more_rows = np.zeros(len(rows), dtype=np.int64)
    left_over -= int((np.array(rows) * (ranks - 1)).sum())
    if within < len(steps):
        more_rows[steps[within]] = left_over
        left_over = 0
    saved = sum(
        sum(each[1:rank]) + (each[rank] * more / count if more else 0.0)
        for each, rank, more, count in zip(gains, ranks.tolist(), more_rows.tolist(), rows, strict=True)
    )
    found = ChosenRanks(of_right, tuple(ranks.tolist()), tuple(more_rows.tolist()), budget - left_over, saved)
    used = int((ranks + (more_rows > 0)).max())
    return found if used == of_right else max(found, ranks_within(gains, rows, cols, budget, used), key=_worth)


def _worth(chosen: ChosenRanks) -> tuple[int, float, int]:
    """What the better one of two has more of: first of all, it uses the budget."""
    return chosen.parameters, chosen.saved, -chosen.of_right


def _falling(gains: Sequence[float]) -> NDArray[np.float64]:
    """Gains that never rise, with the same sum: means over those that rise (the slopes of the concave majorant)."""
    means: list[tuple[float, int]] = []
    for gain in gains:
        mean, count = gain, 1
        while means and means[-1][0] < mean:
            last, last_count = means.pop()
            mean, count = (mean * count + last * last_count) / (count + last_count), count + last_count
        means.append((mean, count))
    return np.array([mean for mean, count in means for _ in range(count)])
