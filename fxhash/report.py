"""A readable account of what became of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxhash.deployed import find_deployed
from fxhash.deployment import DeploymentPlan
from fxhash.generator import current_plan
from fxhash.parts import OpaquePart, original_name
from fxhash.plan import CompressionPlan


@dataclass(frozen=True)
class Summary:
    """What `summary` prints.

    Attributes:
        plan: every parameter and the totals.
        opaque_parts: path and reason of each part that could not be traced.
        deployment: how each weight comes about; None unless the model is deployed.
    """

    plan: CompressionPlan
    opaque_parts: tuple[tuple[str, str], ...]
    deployment: DeploymentPlan | None = None

    @property
    def trainable_before(self) -> int:
        """Number of trainable parameters of the original model."""
        return self.plan.trainable_before

    @property
    def trainable_after(self) -> int:
        """Number of trainable parameters of the transformed model."""
        return self.plan.trainable_after

    def __str__(self) -> str:
        lines = [str(self.plan)]
        if self.opaque_parts:
            lines.append("called as a whole, because it can't be traced:")
            lines.extend(f"  {path}: {reason}" for path, reason in self.opaque_parts)
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
    opaque = tuple(
        (original_name(path) or "the whole model", part.reason)
        for path, part in gm.named_modules()
        if isinstance(part, OpaquePart)
    )
    deployed = find_deployed(gm)
    if deployed is not None:
        result = Summary(deployed.compression, opaque, deployed.plan)
    else:
        result = Summary(current_plan(gm), opaque)
    print(result)
    return result
