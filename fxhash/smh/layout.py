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

# How far the search may go from the requested number of columns: a little to align rows with layers, further to use the
# budget.
_LARGEST_ALIGNMENT = 2**0.5
_LARGEST_STRETCH = 4
# Layers with the most weights decide which columns are row-aligned; beyond a few, others add little.
_ALIGNED_LAYERS = 16
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
    """Numbers of columns to try, best first: those row-aligned for many weights, the nearest, then ever taller ones.

    Args:
        shapes: of the slices of all hashed parameters.
        aspect: rows over columns that are asked for.
    """
    weights = sum(map(math.prod, shapes))
    # Bounded far beyond any number of weights, where a ratio of floats is zero or infinite.
    exact = math.sqrt(min(max(weights / max(aspect, 1e-200), 1e-200), 1e200))
    nearest = min(max(round(exact), 1), weights)
    channels: Counter[tuple[int, ...]] = Counter()
    for shape in shapes:
        if len(shape) >= 2:
            channels[shape[1:]] += math.prod(shape)
    largest = dict(channels.most_common(_ALIGNED_LAYERS))
    # Stretched the way that it leans already, a square one towards tall: there, generating gets cheaper.
    leans_tall = aspect >= 1
    lowest = max(nearest / (_LARGEST_STRETCH if leans_tall else _LARGEST_ALIGNMENT), 1)
    highest = min(nearest * (_LARGEST_ALIGNMENT if leans_tall else _LARGEST_STRETCH), weights)
    aligned = {cols for channel in largest for cols in _aligned_columns(math.prod(channel), lowest, highest)}

    def preference(cols: int) -> tuple[bool, int, float, int]:
        distance = abs(math.log(cols / exact))
        aligned_weights = sum(weights for channel, weights in largest.items() if is_row_aligned((1, *channel), cols))
        return distance > math.log(_LARGEST_ALIGNMENT), -aligned_weights, distance, cols

    stretched = (round(nearest * (0.995 if leans_tall else 1.005) ** step) for step in range(400))
    return list(
        dict.fromkeys([*sorted(aligned, key=preference), nearest, *(c for c in stretched if lowest <= c <= highest)])
    )


def _aligned_columns(channel: int, lowest: float, highest: float) -> list[int]:
    """Multiples and divisors of the weights of an output channel in a range, a bounded number of them."""
    multiples = range(max(math.ceil(lowest / channel), 1), int(highest / channel) + 1)
    spaced = multiples[:: max(len(multiples) // 64, 1)]
    divisors = range(max(math.ceil(channel / highest), 1), min(int(channel / lowest), 4096) + 1)
    return [channel * factor for factor in spaced] + [channel // d for d in divisors if channel % d == 0]


def choose_layout(sizes: Sequence[int], candidates: Iterable[int], enough: float, budget: int) -> FilledLayout | None:
    """The first candidate with `enough` parameters, or the one with most; None if each exceeds the budget at rank 1.

    Args:
        sizes: numbers of entries of the slices of all hashed parameters.
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


@dataclass(frozen=True)
class _SizeClass:
    """What the parameters of one size have in common.

    Attributes:
        rows: rows of `W` that each of them takes.
        rank: the rank that each of them has at least.
        highest_rank: the highest rank that is of use to them.
        missing: their share of ranks, a real number, less `rank`. Negative where a rank of 1 is more than their share.
    """

    rows: int
    rank: int
    highest_rank: int
    missing: float


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
        self.highest_ranks = np.clip((self.numel - 1) // self.rows, 1, rows)
        wanted = (self.numel / self.numel[0]) ** _DENSITY_POWER
        rows_of_smaller = (self.counts * self.rows)[::-1].cumsum()[::-1]
        self.wanted = np.minimum(wanted, wanted[2 * rows_of_smaller >= cols].max(initial=1.0))

    def ranks(self, scale: float) -> NDArray[np.int64]:
        """The rank of each size: `scale` of the largest, 1 at least, and fewer parameters than entries if possible."""
        return np.clip((scale * self.wanted).astype(np.int64), 1, self.highest_ranks)

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

    def classes(self, scale: float) -> dict[int, _SizeClass]:
        """The parameters of each size at a scale, by their number of weights."""
        ranks = self.ranks(scale)
        columns = (self.numel, self.rows, ranks, self.highest_ranks, scale * self.wanted - ranks)
        return {
            numel: _SizeClass(rows, rank, highest_rank, missing)
            for numel, rows, rank, highest_rank, missing in zip(*(each.tolist() for each in columns), strict=True)
        }


def _fill(sizes: Sequence[int], cols: int, budget: int) -> FilledLayout | None:
    """The highest ranks that the budget allows, and one more for as many rows as it still can; None if it allows none.

    What is left over goes to the parameters that miss most of one rank, and at last to some rows of one.
    """
    shares = _Shares(sizes, cols)
    if shares.cost(0.0) > budget:
        return None
    scale = shares.largest_scale(budget)
    left_over = budget - shares.cost(scale)
    classes = shares.classes(scale)
    ranks = [classes[size].rank for size in sizes]
    more_rows = [0] * len(sizes)
    rank_of_right = max(ranks)
    for index in sorted(range(len(sizes)), key=lambda index: (-classes[sizes[index]].missing, -sizes[index], index)):
        of_size = classes[sizes[index]]
        cost_in_right = cols if of_size.rank == rank_of_right else 0
        if of_size.rank == of_size.highest_rank or left_over <= cost_in_right:
            continue
        rank_of_right = max(rank_of_right, of_size.rank + 1)
        left_over -= cost_in_right
        if left_over >= of_size.rows:
            ranks[index] += 1
            left_over -= of_size.rows
        else:
            more_rows[index] = left_over
            left_over = 0
    rows = sum(classes[size].rows for size in sizes)
    return FilledLayout(Layout(rows, cols, rank_of_right), tuple(ranks), tuple(more_rows), budget - left_over)
