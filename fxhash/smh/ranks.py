"""Ranks by what they save: a rank more for the weight whose loss falls most by it, for each parameter that it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxhash.smh.factored_weight import FactoredWeight
from fxhash.smh.weight_target import cholesky


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


def choose_ranks(
    gains: Sequence[Sequence[float]], rows: Sequence[int], budget: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ranks, 1 at least, that remove most loss for so many parameters of `left`.

    Ranks are given by the loss that they remove a parameter. One that removes more than the one before it counts
    together with that. Where gains fall from rank to rank, no other ranks of as many parameters remove more, if the
    further rows of a rank remove their share of what it removes.

    Args:
        gains: of each weight, the loss that each of its ranks removes; as many as it may have.
        rows: of `left` that each weight takes.
        budget: the number of parameters, the sum of all rows at least.

    Returns:
        The ranks, and how many rows of each weight have one more. They have `budget` parameters, or all there may be.

    Example:
        >>> choose_ranks([[9.0, 6.0, 1.0], [9.0, 5.0, 0.0]], rows=[2, 1], budget=6)
        ((2, 2), (1, 0))
    """
    ranks, more_rows = [1] * len(rows), [0] * len(rows)
    left_over = budget - sum(rows)
    assert left_over >= 0, "rank 1 exceeds the budget"
    steps = [
        (-slope / rows[index], index) for index, each in enumerate(gains) for slope in _falling(np.array(each[1:]))
    ]
    for _, index in sorted(steps):
        if rows[index] > left_over:
            more_rows[index] = left_over
            break
        ranks[index] += 1
        left_over -= rows[index]
    return tuple(ranks), tuple(more_rows)


def _falling(gains: np.ndarray) -> list[float]:
    """Gains that never rise, with the same sum: means over those that rise (the slopes of the concave majorant)."""
    means: list[tuple[float, int]] = []
    for gain in gains.tolist():
        mean, count = gain, 1
        while means and means[-1][0] < mean:
            last, last_count = means.pop()
            mean, count = (mean * count + last * last_count) / (count + last_count), count + last_count
        means.append((mean, count))
    return [mean for mean, count in means for _ in range(count)]
