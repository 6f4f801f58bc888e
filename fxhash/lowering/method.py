"""The methods of computing a weight in a lowered model."""

from __future__ import annotations

from enum import Enum


class Method(str, Enum):
    """How a lowered model computes a weight, or does without it.

    Attributes:
        FACTORED: the layer applies the low-rank factors directly and never materializes the weight.
        ADAPTIVE: factored for small inputs; for larger ones the weight is generated.
        GENERATE: the weight is generated in each call, right before its first reader.
        CACHE: the weight is generated once, when the model is lowered, and kept.

    Example:
        >>> Method("cache") is Method.CACHE, Method.CACHE == "cache", str(Method.CACHE)
        (True, True, 'cache')
    """

    FACTORED = "factored"
    ADAPTIVE = "adaptive"
    GENERATE = "generate"
    CACHE = "cache"

    def __str__(self) -> str:
        return self.value
