"""The module that holds what a deployed model generates its weights from, and the plan of how it does so."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fxhash.errors import MemoryBudgetError, PlanError
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
        live: first and last position in the graph at which the generated weight exists.
    """

    node: str
    fqn: str
    method: str
    weight_bytes: int
    operations: int = 0
    operations_in_turn: int = 0
    operations_dense: int = 0
    folded_norm: str = ""
    live: tuple[int, int] = (0, 0)


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
        rows = [("use", "parameter", "method", "weight kB", "exists from..to", "norm folded")]
        for use in self.uses:
            size = f"{use.weight_bytes / 1e3:,.1f}" if use.weight_bytes else "none"
            live = {"in turn": "", "keep": "always"}.get(use.method, "{}..{}".format(*use.live))
            rows.append((use.node, use.fqn, use.method, size, live, use.folded_norm))
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


def peak_of(uses: Sequence[LoweredUse], kept: Collection[str] = ()) -> int:
    """Most bytes of generated weights at any time, if those of the parameters named `kept` always existed."""
    changes: dict[int, int] = {}
    always = {use.fqn: use.weight_bytes for use in uses if use.method == "keep" or use.fqn in kept}
    for use in uses:
        if use.fqn not in always:
            first, last = use.live
            changes[first] = changes.get(first, 0) + use.weight_bytes
            changes[last + 1] = changes.get(last + 1, 0) - use.weight_bytes
    now = most = 0
    for position in sorted(changes):
        now += changes[position]
        most = max(most, now)
    return most + sum(always.values())


def choose_kept(plan: DeploymentPlan, budget: int) -> frozenset[str]:
    """The parameters to generate once and keep within a budget of bytes: those that save most work a byte first.

    Raises:
        MemoryBudgetError: if the budget is less than what generating on demand takes; it names the least.
    """
    if budget < plan.peak_bytes:
        raise MemoryBudgetError(
            f"memory_budget={budget:,} bytes is less than the {plan.peak_bytes:,} bytes that the largest weights take "
            f"while they are in use: give {plan.peak_bytes} or more, or 0 to generate every weight on demand",
            plan.peak_bytes,
        )
    work: dict[str, int] = {}
    size: dict[str, int] = {}
    for use in plan.uses:
        if use.weight_bytes:
            work[use.fqn] = work.get(use.fqn, 0) + use.operations
            size[use.fqn] = max(size.get(use.fqn, 0), use.weight_bytes)
    kept: frozenset[str] = frozenset()
    for fqn in sorted(size, key=lambda fqn: (-work[fqn] / size[fqn], -size[fqn], fqn)):
        if peak_of(plan.uses, kept | {fqn}) <= budget:
            kept |= {fqn}
    return kept


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_bytes(size: int | str) -> int:
    """A number of bytes from a whole number or a text such as `"8MB"` or `"1.5 GiB"`.

    Raises:
        PlanError: for anything else.

    Example:
        >>> read_bytes("8MB"), read_bytes("1.5 KiB"), read_bytes(7)
        (8000000, 1536, 7)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size)) if not isinstance(size, bool) else None
    if match is None or match[2].upper() not in _UNITS:
        raise PlanError(f"memory_budget={size!r} is no size: give bytes, or a text such as '8MB' or '1.5 GiB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


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
