"""The modules of a deployed model: one holds the factors, the other the memory that weights are generated into."""

from __future__ import annotations

import re

from torch import Tensor, nn

from fxhash.graph.names import free_name
from fxhash.lowering.plan import LoweringPlan
from fxhash.smh.plan import CompressionPlan


class FactorStore(nn.Module):
    """Factors of a deployed model: `right`, and the scaled rows of `left` of each use of a parameter.

    Called without arguments it returns `right`, called with a key the tensor that was stored under it.

    Attributes:
        compression: the plan of the transformed model.
        captured: how the model became a graph, for the summary.
        plan: how each weight comes about; set once the whole model is lowered.
    """

    plan: LoweringPlan

    def __init__(self, compression: CompressionPlan, captured: str, right: Tensor) -> None:
        super().__init__()
        self.compression = compression
        self.captured = captured
        self.right = nn.Parameter(right, requires_grad=False)
        self._attributes: dict[str, str] = {}

    def store(self, key: str, tensor: Tensor) -> str:
        """Keep a tensor; returns the key that gives it back, which is `key` unless that is taken."""
        unique, count = key, 1
        while unique in self._attributes:
            count += 1
            unique = f"{key}#{count}"
        self._attributes[unique] = attribute = free_name(self, re.sub(r"\W+", "_", unique))
        self.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
        return unique

    def forward(self, key: str | None = None) -> Tensor:
        """`right`, or the tensor under `key`."""
        return self.right if key is None else getattr(self, self._attributes[key])


def find_factor_store(module: nn.Module) -> FactorStore | None:
    """The factors of a deployed model; None if the model is not deployed."""
    return next((child for child in module.modules() if isinstance(child, FactorStore)), None)
