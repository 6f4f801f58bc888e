"""A readable summary of a transformed or deployed model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from fxhash.graph.names import joined
from fxhash.lowering.factor_store import find_factor_store
from fxhash.lowering.plan import LoweringPlan
from fxhash.opaque_parts import OpaqueSummary, opaque_parts
from fxhash.printable import printable
from fxhash.smh.checks import check_flag
from fxhash.smh.generator import find_generator
from fxhash.smh.parameters import tied_groups
from fxhash.smh.plan import CompressionPlan
from fxhash.transformed import current_plan, required_parts, unwrapped


@dataclass(frozen=True)
class PartSummary:
    """One transformed model: the whole model, or a submodule of one that holds it.

    Attributes:
        path: where the model holds it; empty for the whole model.
        plan: every parameter and the totals.
        captured: how it became a graph.
        opaque_parts: path, reason and weights of each opaque submodule.
        deployment: how each weight is computed; None unless it is lowered.
    """

    path: str
    plan: CompressionPlan
    captured: str
    opaque_parts: tuple[OpaqueSummary, ...]
    deployment: LoweringPlan | None

    @property
    def table(self) -> str:
        """Each parameter's name, shape, treatment and rows, and totals; of a lowered model, how it computes weights."""
        lines = [f"{printable(self.path)}:"] if self.path else []
        lines += [str(self.plan), f"captured: {self.captured}"]
        if self.opaque_parts:
            lines.append("opaque submodules, which can't be traced:")
            lines += [line for opaque in self.opaque_parts for line in opaque.lines(self.plan.hashed_before)]
        if self.deployment is not None:
            lines.extend(["", str(self.deployment)])
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summary` prints: three lines by `str()`, every parameter by `table`.

    Attributes:
        parts: each transformed model; one, unless it is submodules of a model that are transformed.
        trainable_before: trainable parameters of the original model.
        trainable_after: trainable parameters of the transformed model, everything counted.
        bytes_before: bytes of all parameters of the original model, frozen ones among them.
        bytes_after: bytes of all parameters of this model: factors, scales, what stayed dense, and what a lowered one
            stores beside them.
    """

    parts: tuple[PartSummary, ...]
    trainable_before: int
    trainable_after: int
    bytes_before: int
    bytes_after: int

    @property
    def plan(self) -> CompressionPlan:
        """Every parameter and the totals; of the first one, where several submodules are transformed."""
        return self.parts[0].plan

    @property
    def captured(self) -> str:
        """How the model became a graph; the first one, where several submodules are transformed."""
        return self.parts[0].captured

    @property
    def opaque_parts(self) -> tuple[OpaqueSummary, ...]:
        """Path, reason and weights of each opaque submodule of all transformed models."""
        return tuple(
            opaque._replace(path=joined(part.path, opaque.path).rstrip("."))
            for part in self.parts
            for opaque in part.opaque_parts
        )

    @property
    def deployment(self) -> LoweringPlan | None:
        """How each weight is computed, None unless the model is lowered; of the first one, where several are."""
        return self.parts[0].deployment

    @property
    def table(self) -> str:
        """Each parameter's name, shape, treatment and rows, and totals; of a lowered model, how it computes weights."""
        return "\n\n".join(part.table for part in self.parts)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"parameters: {self.trainable_after:,} trainable after, {self.trainable_before:,} before",
                f"bytes:      {_size(self.bytes_after)} after, {_size(self.bytes_before)} before, frozen ones included",
                f"ratio:      {self.trainable_after / self.trainable_before:.2%} of the parameters, "
                f"{self.bytes_after / self.bytes_before:.2%} of the bytes",
            ]
        )

    def __repr__(self) -> str:
        return f"<Summary: {self.trainable_after:,} of {self.trainable_before:,} parameters; print its .table for more>"


def summary(gm: nn.Module, *, verbose: bool = False) -> Summary:
    """Print what became of a model in three lines: parameters, bytes, and the ratio.

    Args:
        gm: a transformed or deployed model, or one that holds some; also what `torch.compile`, `DataParallel`,
            `DistributedDataParallel` or `AveragedModel` made of it.
        verbose: whether to print the table too: name, shape, treatment and rows of each parameter, how the model was
            captured, and how each weight of a deployed one is computed.

    Returns:
        What was printed, as a value; `str()` gives the three lines, `.table` the rest.

    Raises:
        TransformError: if `gm` is not a transformed model.
        PlanError: if `verbose` is neither True nor False.
    """
    check_flag("verbose", verbose)
    gm = unwrapped(gm)
    graphs = required_parts(gm)
    parts = tuple(_describe(path, part) for path, part in graphs.items())
    of_parts = {id(parameter) for part in graphs.values() for parameter in part.parameters()}
    distinct = [tied[0] for _, tied in tied_groups(gm)]
    others = [parameter for parameter in distinct if id(parameter) not in of_parts]
    # Nothing of a lowered model is trained any more.
    trained = sum(each.numel() for each in others if each.requires_grad or parts[0].deployment is not None)
    result = Summary(
        parts,
        trainable_before=trained + sum(part.plan.trainable_before for part in parts),
        trainable_after=trained + sum(part.plan.trainable_after for part in parts),
        bytes_before=sum(each.nbytes for each in others) + sum(_original_bytes(part.plan) for part in parts),
        bytes_after=sum(each.nbytes for each in distinct),
    )
    print(f"{result}\n\n{result.table}" if verbose else result)
    return result


def _describe(path: str, gm: fx.GraphModule) -> PartSummary:
    deployed = find_factor_store(gm)
    plan = current_plan(gm) if deployed is None else deployed.compression
    holder = find_generator(gm) if deployed is None else deployed
    assert holder is not None
    return PartSummary(path, plan, holder.captured, opaque_parts(gm, plan), None if deployed is None else deployed.plan)


def _original_bytes(plan: CompressionPlan) -> int:
    types = {parameter.dtype: getattr(torch, parameter.dtype) for parameter in plan.parameters}
    return sum(parameter.numel * types[parameter.dtype].itemsize for parameter in plan.parameters)


def _size(count: int) -> str:
    """Bytes as text, in a unit that keeps them short."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"
