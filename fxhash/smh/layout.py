"""Choosing the shape of `W = left @ right`, and the rank of each parameter, from sizes and a budget alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxhash.smh.arithmetic import is_row_aligned

# A weight's density, trained parameters over weights, falls with this power of its size: small layers, early ones above
# all, are worth more a weight (docs/accuracy.md).
_DENSITY_POWER = -0.25

# How far the search may go from the requested number of columns: a little for columns that fit the layers, further to
# use the budget.
_LARGEST_FIT = 2**0.5
_LARGEST_STRETCH = 4
# Layers with the most weights decide which columns fit; beyond a few, others add little.
_FITTED_LAYERS = 16
# Of the interval in which the ranks' common scale is sought: to a part in a million of the columns.
_HALVINGS = 20


@dataclass(frozen=True)
class Layout:
    """Shape of the factors: `left` is `(rows, rank)`, `right` is `(rank, cols)`.

    The rank is a whole number and a budget rarely a multiple of it: some rows may use one row of `right` less.
    """

    rows: int
    cols: int
    rank: int


@dataclass(frozen=True)
class FilledLayout:
    """A layout, with the rank and the further rows of each hashed parameter."""

    shape: Layout
    ranks: tuple[int, ...]
    more_rows: tuple[int, ...]
    parameters: int


def candidate_columns(shapes: Sequence[tuple[int, ...]], aspect: float) -> list[int]:
    """Numbers of columns to try, best first: those that fit many weights, then the nearest, then ever taller ones.

    Args:
        shapes: of the runs of all hashed parameters.
        aspect: rows over columns that are asked for.
    """
    weights = sum(map(math.prod, shapes))
    exact = math.sqrt(weights / aspect)
    nearest = min(max(round(exact), 1), weights)
    channels: Counter[tuple[int, ...]] = Counter()
    for shape in shapes:
        if len(shape) >= 2:
            channels[shape[1:]] += math.prod(shape)
    largest = dict(channels.most_common(_FITTED_LAYERS))
    # Stretched the way that it leans already, a square one towards tall: there, generating gets cheaper.
    leans_tall = aspect >= 1
    lowest = max(nearest / (_LARGEST_STRETCH if leans_tall else _LARGEST_FIT), 1)
    highest = min(nearest * (_LARGEST_FIT if leans_tall else _LARGEST_STRETCH), weights)
    fitting = {cols for channel in largest for cols in _fitting_columns(math.prod(channel), lowest, highest)}

    def misfit(cols: int) -> tuple[bool, int, float, int]:
        distance = abs(math.log(cols / exact))
        fitting_weights = sum(weights for channel, weights in largest.items() if is_row_aligned((1, *channel), cols))
        return distance > math.log(_LARGEST_FIT), -fitting_weights, distance, cols

    stretched = (round(nearest * (0.995 if leans_tall else 1.005) ** step) for step in range(400))
    return list(
        dict.fromkeys([*sorted(fitting, key=misfit), nearest, *(c for c in stretched if lowest <= c <= highest)])
    )


def _fitting_columns(channel: int, lowest: float, highest: float) -> list[int]:
    """Multiples and divisors of the weights of an output channel in a range, a bounded number of them."""
    multiples = range(max(math.ceil(lowest / channel), 1), int(highest / channel) + 1)
    spaced = multiples[:: max(len(multiples) // 64, 1)]
    divisors = range(max(math.ceil(channel / highest), 1), min(int(channel / lowest), 4096) + 1)
    return [channel * factor for factor in spaced] + [channel // d for d in divisors if channel % d == 0]


def choose_layout(sizes: Sequence[int], candidates: Iterable[int], enough: float, budget: int) -> FilledLayout | None:
    """The first candidate with `enough` parameters, or the one with most; None if each exceeds the budget at rank 1.

    Args:
        sizes: numbers of entries of the runs of all hashed parameters.
        candidates: numbers of columns.
        enough: parameters in factors and scales at which the search ends.
        budget: the most that there may be.
    """
    best = None
    for cols in candidates:
        layout = _fill(sizes, cols, budget)
        if layout is not None and (best is None or layout.parameters > best.parameters):
            best = layout
            if layout.parameters >= enough:
                break
    return best


def least_parameters(sizes: Sequence[int], candidates: Iterable[int]) -> int:
    """The fewest parameters that factors and scales can have."""
    return min(_Shares(sizes, cols).cost(0.0) for cols in candidates)


class _Shares:
    """Ranks for parameters of some sizes, in the proportions of their densities, and what they cost.

    Small parameters get the higher ranks, but few rows alone get none of their own: a row of `right` is used by half as
    many rows of `left`, at least, as it has columns.

    Args:
        sizes: numbers of weights of all hashed parameters.
        cols: columns of `W`.
    """

    def __init__(self, sizes: Iterable[int], cols: int) -> None:
        self.cols = cols
        distinct = sorted(Counter(sizes).items(), reverse=True)
        self.numel, self.counts = np.array(distinct, dtype=np.int64).T
        self.rows = -(-self.numel // cols)
        rows = int((self.counts * self.rows).sum())
        self.most = np.clip((self.numel - 1) // self.rows, 1, rows)
        wanted = (self.numel / self.numel[0]) ** _DENSITY_POWER
        rows_of_smaller = (self.counts * self.rows)[::-1].cumsum()[::-1]
        self.wanted = np.minimum(wanted, wanted[2 * rows_of_smaller >= cols].max(initial=1.0))

    def ranks(self, scale: float) -> NDArray[np.int64]:
        """The rank of each size: `scale` of the largest, 1 at least, and fewer parameters than entries if possible."""
        return np.clip((scale * self.wanted).astype(np.int64), 1, self.most)

    def cost(self, scale: float) -> int:
        """Parameters in factors and scales."""
        ranks = self.ranks(scale)
        return int((self.counts * (self.rows * ranks + 1)).sum() + self.cols * ranks.max())

    def largest_scale(self, budget: int) -> float:
        """The largest scale whose cost is within the budget, if that of rank 1 is."""
        low, high = 0.0, float(self.cols)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.cost(middle) <= budget else (low, middle)
        return low


def _fill(sizes: Sequence[int], cols: int, budget: int) -> FilledLayout | None:
    """The highest ranks that the budget allows, and one more for as many rows as it still can; None if it allows none.

    What is left over goes to the parameters that miss most of one rank, and at last to some rows of one.
    """
    shares = _Shares(sizes, cols)
    if shares.cost(0.0) > budget:
        return None
    scale = shares.largest_scale(budget)
    left_over = budget - shares.cost(scale)
    its_ranks = shares.ranks(scale)
    each = zip(shares.rows.tolist(), its_ranks.tolist(), shares.most.tolist(), strict=True)
    of_size = dict(zip(shares.numel.tolist(), each, strict=True))
    missing = dict(zip(shares.numel.tolist(), (scale * shares.wanted - its_ranks).tolist(), strict=True))
    ranks, more_rows = [of_size[size][1] for size in sizes], [0] * len(sizes)
    highest = max(ranks)
    for place in sorted(range(len(sizes)), key=lambda place: (-missing[sizes[place]], -sizes[place], place)):
        rows, rank, most = of_size[sizes[place]]
        needs_right = cols if rank == highest else 0
        if rank == most or left_over <= needs_right:
            continue
        highest = max(highest, rank + 1)
        left_over -= needs_right
        ranks[place] += left_over >= rows
        more_rows[place] = 0 if left_over >= rows else left_over
        left_over -= min(left_over, rows)
    layout = Layout(sum(of_size[size][0] for size in sizes), cols, highest)
    return FilledLayout(layout, tuple(ranks), tuple(more_rows), budget - left_over)
