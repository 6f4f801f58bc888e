"""The cost model by which the method of a weight is chosen: counted multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fxhash.lowering.method import Method


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of one use of a weight, for each way to compute it.

    A position is a row of a linear layer's input, an input pixel of a convolution, or an index of a lookup.

    Attributes:
        generate: generating the weight, once a call.
        dense: applying the materialized weight, a position.
        factored: applying the factors, a position; None where that is not possible.

    Example:
        >>> [str(Costs(generate=600, dense=30, factored=each).method) for each in (20, 50, None)]
        ['factored', 'adaptive', 'generate']
        >>> Costs(generate=600, dense=30, factored=50).max_positions
        30
    """

    generate: int
    dense: int = 0
    factored: int | None = None

    @property
    def method(self) -> Method:
        """The least work; adaptive where that depends on the number of positions."""
        if self.factored is None:
            return Method.GENERATE
        return Method.FACTORED if self.factored <= self.dense else Method.ADAPTIVE

    @property
    def max_positions(self) -> int:
        """For an adaptive layer: up to how many positions the factors are no more work than the generated weight."""
        assert self.method is Method.ADAPTIVE
        return self.generate // ((self.factored or 0) - self.dense)

    def of_training(self, thin_product_cost: float = 1.0) -> Costs:
        """What forward and backward take together, where a weight is generated again for backward.

        The gradients of both factors of a product take as much as the product each.

        Args:
            thin_product_cost: as in `DeviceProfile`.

        Example:
            >>> Costs(generate=600, dense=30, factored=20).of_training()
            Costs(generate=2400, dense=90, factored=60)
        """
        factored = None if self.factored is None else int(3 * thin_product_cost * self.factored)
        return Costs(4 * self.generate, 3 * self.dense, factored)

    def saved_by_caching(self, method: Method, thin_product_cost: float) -> int:
        """What a call saves with a cached weight: generating it, or what a position costs more with the factors.

        Args:
            method: how the weight is computed if it is not cached.
            thin_product_cost: as in `DeviceProfile`.
        """
        if method is Method.FACTORED:
            return max(int(thin_product_cost * (self.factored or 0)) - self.dense, 0)
        return self.generate


def layer_costs(shape: Sequence[int], rank: int, cols: int) -> Costs:
    """Costs of a linear layer or convolution whose weight of `shape` is aligned with rows of `cols` elements.

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
