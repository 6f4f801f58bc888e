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
        factored: multiplying by the factors in turn, a position; None where that is not possible.

    Example:
        >>> Costs(generate=600, dense=30, factored=20).method, Costs(generate=600, dense=30, factored=50).method
        ('in turn', 'by size')
        >>> Costs(generate=600, dense=30, factored=50).max_positions
        30
    """

    generate: int
    dense: int = 0
    factored: int | None = None

    @property
    def method(self) -> str:
        """The least work: `"factored"`, `"generate"`, or `"adaptive"` where that depends on the number of positions."""
        if self.factored is None:
            return "generate"
        return "factored" if self.factored <= self.dense else "adaptive"

    @property
    def max_positions(self) -> int:
        """Where it is by size: up to how many positions multiplying in turn is no more work than generating."""
        assert self.method == "adaptive"
        return self.generate // ((self.factored or 0) - self.dense)

    def saved_by_caching(self, method: str) -> int:
        """What a call saves if the weight is there: generating it, or what one position takes more without it."""
        return max(int(_THIN * (self.factored or 0)) - self.dense, 0) if method == "factored" else self.generate


def layer_costs(shape: Sequence[int], rank: int, cols: int) -> Costs:
    """Costs of a linear layer or convolution whose weight of `shape` nests with rows of `cols` elements.

    Example:
        >>> layer_costs((512, 512, 3, 3), rank=11, cols=576)
        Costs(generate=25952256, dense=2359296, factored=95744)
    """
    out, channel = shape[0], math.prod(shape[1:])
    factored = rank * (cols + out) if cols % channel == 0 else rank * (channel + out * (channel // cols))
    return Costs(math.prod(shape) * rank, math.prod(shape), factored)


def lookup_costs(shape: Sequence[int], rank: int) -> Costs:
    """Costs of an embedding, whose dense form only copies."""
    return Costs(math.prod(shape) * rank, factored=rank * math.prod(shape[1:]))
