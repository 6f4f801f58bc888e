"""The module that holds what a deployed model generates its weights from, and the plan of how it does so."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fxhash.plan import CompressionPlan


@dataclass(frozen=True)
class LoweredUse:
    """How one use of a hashed parameter is computed in a deployed model.

    Attributes:
        node: name of the graph node that uses it.
        fqn: the parameter's fully qualified name.
        method: `"in turn"` (the layer multiplies by the factors, no weight is built), `"by size"` (in turn for small
            inputs, generated for large ones), `"generate"`, or `"keep"` (generated once, when the model is lowered).
        weight_bytes: size of the generated weight while it exists; zero where none is built.
        operations: multiply-adds of generating the weight; zero where none is built.
        operations_in_turn: multiply-adds a position when multiplying in turn; zero where that is not possible.
        operations_dense: multiply-adds a position of the dense layer; zero where it is no layer that is known.
        folded_norm: name of the batch norm node that was folded in; empty if none.
    """

    node: str
    fqn: str
    method: str
    weight_bytes: int
    operations: int = 0
    operations_in_turn: int = 0
    operations_dense: int = 0
    folded_norm: str = ""


@dataclass(frozen=True)
class DeploymentPlan:
    """How each weight of a deployed model comes about, in the order of use.

    Attributes:
        uses: one entry for each use of a hashed parameter.
        peak_bytes: most bytes of generated weights at any time, kept ones included.
        factor_bytes: bytes of the factors.
    """

    uses: tuple[LoweredUse, ...]
    peak_bytes: int
    factor_bytes: int

    def __str__(self) -> str:
        rows = [("use", "parameter", "method", "weight kB", "norm folded")]
        rows += [
            (use.node, use.fqn, use.method, f"{use.weight_bytes / 1e3:,.1f}", use.folded_norm) for use in self.uses
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(
            [
                *table,
                "",
                f"factors: {self.factor_bytes / 1e3:,.1f} kB",
                f"generated weights: at most {self.peak_bytes / 1e3:,.1f} kB at a time",
            ]
        )


class DeployedFactors(nn.Module):
    """Factors of a deployed model: `right`, and the scaled rows of `left` of each use of a parameter.

    Called without arguments it returns `right`, called with a key the tensor that was stored under it.

    Attributes:
        compression: the plan of the transformed model.
        plan: how each weight comes about; set once the whole model is lowered.
    """

    plan: DeploymentPlan

    def __init__(self, compression: CompressionPlan, right: Tensor) -> None:
        super().__init__()
        self.compression = compression
        self.right = nn.Parameter(right, requires_grad=False)
        self.tensors = nn.ParameterList()
        self._index: dict[str, int] = {}

    def store(self, key: str, tensor: Tensor) -> str:
        """Keep a tensor; returns the key that gives it back, which is `key` unless that is taken."""
        unique, count = key, 1
        while unique in self._index:
            count += 1
            unique = f"{key}#{count}"
        self._index[unique] = len(self.tensors)
        self.tensors.append(nn.Parameter(tensor, requires_grad=False))
        return unique

    def forward(self, key: str | None = None) -> Tensor:
        """`right`, or the tensor under `key`."""
        return self.right if key is None else self.tensors[self._index[key]]


def find_deployed(module: nn.Module) -> DeployedFactors | None:
    """The factors of a deployed model; None if the model is not deployed."""
    return next((child for child in module.modules() if isinstance(child, DeployedFactors)), None)
