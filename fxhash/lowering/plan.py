"""The plan of a lowered model: how each weight is computed, when it is in memory, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from fxhash.lowering.costs import Costs
from fxhash.lowering.method import Method
from fxhash.smh.factor_bits import FactorBits
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.tables import text_table


class Reader(str, Enum):
    """What reads a weight: a plain layer, attention of `torch.nn`, or anything else, for which it is generated."""

    LINEAR = "linear"
    CONVOLUTION = "convolution"
    EMBEDDING = "embedding"
    ATTENTION = "attention"
    OTHER = "other"

    @property
    def is_plain_layer(self) -> bool:
        """Whether one weight and an input go in, so that the factors can be applied in its place."""
        return self in (Reader.LINEAR, Reader.CONVOLUTION, Reader.EMBEDDING)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that the lowered model stores for a use of a weight.

    Attributes:
        role: `"left"` (the scaled rows of `left`, with a folded batch norm where rows and channels allow, or integers
            in their place), `"left steps"` (of the integers), `"shift"`, `"kernels"`, `"channel scale"` and `"bias"`
            (of a folded batch norm), or `"weight"` (cached).
        shape: its shape.
        bytes: its size.
    """

    role: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class WeightUse:
    """How a hashed parameter is computed for one or several nodes that read it.

    Nodes have their names in the transformed graph.

    Attributes:
        parameter: the hashed parameter.
        weight: name of the node that is the generated weight in the transformed graph.
        node: name of the first node that reads it, for which it is computed.
        readers: names of all nodes that read it as computed here, in the order of the graph.
        reader: what reads it.
        method: how it is computed.
        module: path of the module nested in the opaque submodule `node` that computes it when called; None if the
            graph does.
        cast: the type that the generated weight is cast to; None where it is that of the factors.
        split: whether a separable convolution is split; the weight is then that of the pointwise half.
        folded_norm: name of the batch norm that is folded in; empty if none.
        costs: multiply-adds of each way to compute this use.
        weight_bytes: size of the weight.
        memory_bytes: memory that the generated weight takes while it exists; 0 if it is never materialized, or cached.
        live: when the generated weight exists: first and last position in the order of the transformed graph's nodes.
        until: name of the last node that reads it, or what may share its memory.
        slot: index of the scratch slot that it is generated into; None if it has memory of its own.
        stored: what the lowered model stores for it.
    """

    parameter: ParameterPlan
    weight: str
    node: str
    readers: tuple[str, ...]
    reader: Reader
    method: Method
    module: str | None
    cast: torch.dtype | None
    split: bool
    folded_norm: str
    costs: Costs
    weight_bytes: int
    memory_bytes: int = 0
    live: tuple[int, int] = (0, 0)
    until: str = ""
    slot: int | None = None
    stored: tuple[StoredTensor, ...] = ()

    @property
    def fqn(self) -> str:
        """The parameter's fully qualified name."""
        return self.parameter.fqn

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what layers multiply by: the weight, or that of the pointwise half of a split convolution."""
        return self.parameter.slice_shape if self.split else self.parameter.shape

    def key(self, role: str) -> str:
        """The name under which a tensor is stored, the same for uses that can share it.

        Args:
            role: as of `StoredTensor`.
        """
        return ", ".join(filter(None, (self.fqn, self.folded_norm, "" if role == "left" else role)))

    def stores(self, role: str) -> bool:
        """Whether a tensor of a role is stored."""
        return any(tensor.role == role for tensor in self.stored)


@dataclass(frozen=True)
class LoweringPlan:
    """How each weight of a lowered model is computed.

    Attributes:
        uses: an entry for each use of a hashed parameter, in the order of the graph.
        slot_bytes: size of each scratch slot, which all weights share that are generated into it.
        peak_bytes: most bytes of weights at any time: cached ones, scratch slots, and those with memory of their own.
        factor_bytes: bytes of the factors, and of what else is stored to generate weights.
        factor_bits: as which integers of 8 bits `left` and `right` are stored; None for floating point.
        widened_bytes: most bytes of factors that are in floating point for a layer, while it is computed; 0 if all are
            stored so. Of an embedding, no rows of `left` but those that are looked up, which are not counted.
        channels_last: whether images that go through several convolutions have their channels last in memory.
    """

    uses: tuple[WeightUse, ...]
    slot_bytes: tuple[int, ...]
    peak_bytes: int
    factor_bytes: int
    factor_bits: FactorBits | None = None
    widened_bytes: int = 0
    channels_last: bool = False

    @property
    def cached_bytes(self) -> int:
        """Bytes of the cached weights."""
        return cached_bytes(self.uses)

    def __str__(self) -> str:
        slots = ", ".join(f"{size / 1e3:,.1f} kB" for size in self.slot_bytes)
        return "\n".join(
            [
                text_table([_HEADING, *map(_row, self.uses)]),
                "",
                "generate: thousands of multiply-adds, once a call",
                "factored, dense: thousands of multiply-adds for each position (row, pixel or index)",
                "",
                f"factors: {self.factor_bytes / 1e3:,.1f} kB",
                *([f"widened factors: at most {self.widened_bytes / 1e3:,.1f} kB at a time"] * bool(self.factor_bits)),
                f"scratch slots: {slots or 'none'}",
                f"weights, scratch included: at most {self.peak_bytes / 1e3:,.1f} kB at a time",
            ]
        )


_HEADING = (
    *("node", "parameter", "method", "exists until", "slot", "kB"),
    *("generate", "factored", "dense", "norm folded"),
)


def _row(use: WeightUse) -> tuple[str, ...]:
    exists = {Method.FACTORED: "never", Method.CACHE: "always"}.get(use.method, use.until)
    size = f"{use.memory_bytes / 1e3:,.1f}" if use.memory_bytes else ""
    factored = "" if use.costs.factored is None else f"{use.costs.factored / 1e3:,.1f}"
    work = (f"{use.costs.generate / 1e3:,.1f}", factored, f"{use.costs.dense / 1e3:,.1f}")
    slot = "" if use.slot is None else str(use.slot)
    return use.node, use.fqn, str(use.method), exists, slot, size, *work, use.folded_norm


def cached_bytes(uses: Sequence[WeightUse]) -> int:
    """Bytes of the cached weights, each counted once."""
    return sum({use.key("weight"): use.weight_bytes for use in uses if use.method is Method.CACHE}.values())
