"""The cost model by which a deployed layer chooses how it comes by its weight: counted multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Thin products, as the factors' are, run at a lower rate than the dense layer's (benchmarks/costs.py).
_THIN = 1.5


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of one use of a weight, in each of the ways to compute it.

    A position is a row of a linear layer's input, an input pixel of a convolution, or an index of a lookup.

    Attributes:
        generate: generating the weight, once a call.
        dense: what a layer does with a weight that is there, a position.
        in_turn: multiplying by the factors in turn, a position; None where that is not possible.

    Example:
        >>> Costs(generate=600, dense=30, in_turn=20).method, Costs(generate=600, dense=30, in_turn=50).method
        ('in turn', 'by size')
        >>> Costs(generate=600, dense=30, in_turn=50).most_positions
        30
    """

    generate: int
    dense: int = 0
    in_turn: int | None = None

    @property
    def method(self) -> str:
        """The least work: `"in turn"`, `"generate"`, or `"by size"` where that depends on the number of positions."""
        if self.in_turn is None:
            return "generate"
        return "in turn" if self.in_turn <= self.dense else "by size"

    @property
    def most_positions(self) -> int:
        """Where it is by size: up to how many positions multiplying in turn is no more work than generating."""
        assert self.method == "by size"
        return self.generate // ((self.in_turn or 0) - self.dense)

    def saved_by_keeping(self, method: str) -> int:
        """What a call saves if the weight is there: generating it, or what one position takes more without it."""
        return max(int(_THIN * (self.in_turn or 0)) - self.dense, 0) if method == "in turn" else self.generate


def layer_costs(shape: Sequence[int], rank: int, cols: int) -> Costs:
    """Costs of a linear layer or convolution whose weight of `shape` nests with rows of `cols` elements.

    Example:
        >>> layer_costs((512, 512, 3, 3), rank=11, cols=576)
        Costs(generate=25952256, dense=2359296, in_turn=95744)
    """
    out, channel = shape[0], math.prod(shape[1:])
    in_turn = rank * (cols + out) if cols % channel == 0 else rank * (channel + out * (channel // cols))
    return Costs(math.prod(shape) * rank, math.prod(shape), in_turn)


def lookup_costs(shape: Sequence[int], rank: int) -> Costs:
    """Costs of an embedding, whose dense form only copies."""
    return Costs(math.prod(shape) * rank, in_turn=rank * math.prod(shape[1:]))
