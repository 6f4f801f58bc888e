"""A readable summary of a transformed or deployed model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from fxhash.capture.opaque import OpaqueModule
from fxhash.graph.names import original_name
from fxhash.lowering.factor_store import find_factor_store
from fxhash.lowering.plan import LoweringPlan
from fxhash.printable import printable
from fxhash.smh.generator import find_generator
from fxhash.smh.plan import CompressionPlan
from fxhash.transformed import current_plan


class OpaqueSummary(NamedTuple):
    """An opaque submodule: one that could not be traced, so that the graph calls it as one node.

    Attributes:
        path: its name in the original model; empty for the model itself.
        reason: why it could not be traced.
        weights: how many of its weights are generated.
    """

    path: str
    reason: str
    weights: int


@dataclass(frozen=True)
class Summary:
    """What `summary` prints.

    Attributes:
        plan: every parameter and the totals.
        captured: how the model became a graph.
        opaque_parts: path, reason and weights of each opaque submodule.
        deployment: how each weight is computed; None unless the model is deployed.
    """

    plan: CompressionPlan
    captured: str
    opaque_parts: tuple[OpaqueSummary, ...]
    deployment: LoweringPlan | None = None

    @property
    def trainable_before(self) -> int:
        """Number of trainable parameters of the original model."""
        return self.plan.trainable_before

    @property
    def trainable_after(self) -> int:
        """Number of trainable parameters of the transformed model."""
        return self.plan.trainable_after

    def __str__(self) -> str:
        lines = [str(self.plan), f"captured: {self.captured}"]
        if self.opaque_parts:
            lines.append("opaque submodules, which can't be traced:")
            for opaque in self.opaque_parts:
                share = opaque.weights / self.plan.hashed_before
                lines.append(
                    f"  {printable(opaque.path) or 'the whole model'} ({share:.1%} of the generated weights): "
                    f"{printable(opaque.reason)}"
                )
        if self.deployment is not None:
            lines.extend(["", str(self.deployment)])
        return "\n".join(lines)


def summary(gm: fx.GraphModule) -> Summary:
    """Print name, shape, treatment and rows of each parameter, and the totals before and after.

    Args:
        gm: a transformed or deployed model.

    Returns:
        What was printed, as a value; `str()` gives the text.

    Raises:
        TransformError: if `gm` is not a transformed model.
    """
    deployed = find_factor_store(gm)
    plan = current_plan(gm) if deployed is None else deployed.compression
    opaque = tuple(
        OpaqueSummary(original_name(path), module.reason, _weights_below(original_name(path), plan))
        for path, module in gm.named_modules()
        if isinstance(module, OpaqueModule)
    )
    holder = find_generator(gm) if deployed is None else deployed
    assert holder is not None
    result = Summary(plan, holder.captured, opaque, None if deployed is None else deployed.plan)
    print(result)
    return result


def _weights_below(path: str, plan: CompressionPlan) -> int:
    """Number of generated weights of the module at `path`."""
    prefix = f"{path}." if path else ""
    return sum(
        parameter.numel
        for parameter in plan.hashed
        if any(name.startswith(prefix) for name in (parameter.fqn, *parameter.aliases))
    )
