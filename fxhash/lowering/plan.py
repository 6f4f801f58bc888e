"""The plan of a deployed model: how each use of a weight is computed, when a weight exists, where, and how large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxhash.lowering.costs import Costs


@dataclass(frozen=True)
class WeightUse:
    """How one use of a hashed parameter is computed in a deployed model.

    Attributes:
        node: name of the graph node that uses it.
        fqn: the parameter's fully qualified name.
        method: `"factored"` (the layer multiplies by the factors, no weight is built), `"adaptive"` (in turn for small
            inputs, generated for large ones), `"generate"`, or `"cache"` (generated once, when the model is lowered).
        weight_bytes: size of the weight itself.
        costs: multiply-adds of each way to compute this use.
        memory_bytes: memory that the generated weight takes while it exists; zero where none is built.
        live: when the generated weight exists: first and last position in the order of the graph's nodes.
        until: name of the last node that reads it, or what may share its memory.
        slot: index of the scratch slot that it is generated into; None if it has memory of its own.
        folded_norm: name of the batch norm node that was folded in; empty if none.
        inside: path of the module inside of the node's part that does it when it is called; None for the node itself.
    """

    node: str
    fqn: str
    method: str
    weight_bytes: int
    costs: Costs
    memory_bytes: int = 0
    live: tuple[int, int] = (0, 0)
    until: str = ""
    slot: int | None = None
    folded_norm: str = ""
    inside: str | None = None


@dataclass(frozen=True)
class LoweringPlan:
    """How each weight of a deployed model comes about, in the order of use.

    Attributes:
        uses: one entry for each use of a hashed parameter.
        slot_bytes: size of each scratch slot, which all weights that are generated into it share.
        peak_bytes: most bytes of weights at any time: kept ones, scratch slots, and those with memory of their own.
        factor_bytes: bytes of the factors.
    """

    uses: tuple[WeightUse, ...]
    slot_bytes: tuple[int, ...]
    peak_bytes: int
    factor_bytes: int

    @property
    def cached_bytes(self) -> int:
        """Bytes of the weights that are kept."""
        return cached_bytes(self.uses)

    def __str__(self) -> str:
        rows = [
            ("use", "parameter", "method", "exists until", "slot", "kB", "generate", "factored", "dense", "norm folded")
        ]
        for use in self.uses:
            live = {"factored": "never", "cache": "always"}.get(use.method, use.until)
            slot = "" if use.slot is None else str(use.slot)
            size = f"{use.memory_bytes / 1e3:,.1f}" if use.memory_bytes else ""
            factored = "" if use.costs.factored is None else f"{use.costs.factored / 1e3:,.1f}"
            work = (f"{use.costs.generate / 1e3:,.1f}", factored, f"{use.costs.dense / 1e3:,.1f}")
            rows.append((use.node, use.fqn, use.method, live, slot, size, *work, use.folded_norm))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        slots = ", ".join(f"{size / 1e3:,.1f} kB" for size in self.slot_bytes)
        return "\n".join(
            [
                *table,
                "",
                "generate: thousands of multiply-adds, once a call",
                "in turn, dense: thousands of multiply-adds for each position (row, pixel or index)",
                "",
                f"factors: {self.factor_bytes / 1e3:,.1f} kB",
                f"scratch slots: {slots or 'none'}",
                f"weights, scratch included: at most {self.peak_bytes / 1e3:,.1f} kB at a time",
            ]
        )


def cached_bytes(uses: Sequence[WeightUse]) -> int:
    """Bytes of the weights that are kept, each counted once."""
    return sum({use.fqn: use.weight_bytes for use in uses if use.method == "cache"}.values())
