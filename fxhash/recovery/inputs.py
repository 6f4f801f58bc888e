"""The batches of a recovery: which are learned from, in which order, and which are held out."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxhash.capture.calibration import Batch, arguments_of
from fxhash.errors import PlanError

# Without `held_out`, one batch in so many is held out, and no more than so many.
_ONE_IN, _MOST_HELD_OUT = 16, 8


class Inputs:
    """Batches to learn from again and again, and those that are held out.

    Attributes:
        held_out: the latter.
        position: how often all were gone through, and how many batches were taken since.
    """

    def __init__(self, batches: Iterable[Batch], held_out: Iterable[Batch] | None, seed: int) -> None:
        self._seed = seed
        self.position = (0, 0)
        self._batches = batches
        self._listed = isinstance(batches, Sequence)
        self._skipped = 0
        if held_out is not None:
            self.held_out = list(held_out)
            if not self.held_out:
                raise PlanError("held_out holds no batch: give at least one to measure on, or leave it out")
        elif isinstance(batches, Sequence):
            count = min(max(len(batches) // _ONE_IN, 1), _MOST_HELD_OUT, max(len(batches) - 1, 0))
            # Evenly from all: they may be sorted by length.
            places = {(2 * index + 1) * len(batches) // (2 * count) for index in range(count)}
            self.held_out = [batches[place] for place in sorted(places)]
            self._batches = [each for place, each in enumerate(batches) if place not in places]
        else:
            self.held_out = list(islice(iter(batches), 1))
            self._skipped = int(iter(batches) is not batches)
            if self._skipped and not _are_equal(self.held_out, list(islice(iter(batches), 1))):
                warnings.warn(
                    "batches come in another order each time, so that what is held out is learned from too: what is "
                    "measured on it says too much. Give held_out=..., or a loader that does not shuffle",
                    UserWarning,
                    stacklevel=3,
                )
        if not self.held_out:
            raise PlanError(
                "recover needs at least two batches: one is held out to measure on. Give more of them, or batches to "
                "measure on as held_out=..."
            )

    def __iter__(self) -> Iterator[Batch]:
        """The batches from `position` on, without end; what can be gone through only once ends with it."""
        while True:
            rounds, taken = self.position
            for batch in islice(self._round(rounds), taken, None):
                self.position = (rounds, self.position[1] + 1)
                yield batch
            if self.position == (rounds, 0):
                return
            self.position = (rounds + 1, 0)

    def _round(self, number: int) -> Iterable[Batch]:
        if self._listed:
            assert isinstance(self._batches, Sequence)
            order = list(range(len(self._batches)))
            random.Random(f"{self._seed} {number}").shuffle(order)
            return (self._batches[place] for place in order)
        return islice(iter(self._batches), self._skipped, None)


def _are_equal(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    """Whether the tensors of some batches are the same."""
    leaves = [tree_leaves([arguments_of(batch) for batch in batches]) for batches in (one, other)]
    pairs = [pair for pair in zip(*leaves, strict=False) if all(isinstance(each, Tensor) for each in pair)]
    return len(leaves[0]) == len(leaves[1]) and all(torch.equal(*pair) for pair in pairs)
