"""The opaque submodules of a transformed model: listed for its summary, and announced where they hold many weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from fxhash.capture.capturing import MOST_OPAQUE
from fxhash.capture.opaque import OpaqueModule
from fxhash.errors import OpaqueWarning
from fxhash.graph.names import original_name
from fxhash.printable import printable
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.plan import CompressionPlan

# How many reasons a warning gives.
_LONGEST = 3


class OpaqueSummary(NamedTuple):
    """An opaque submodule: one that could not be traced, so that the graph calls it as one node.

    Attributes:
        path: its name in the original model; empty for the model itself.
        reason: why it could not be traced.
        weights: how many of its weights are generated.
        where: the line of its code that could not be traced; empty where there is none.
        hint: the change of its code that would help; empty where none is known.
    """

    path: str
    reason: str
    weights: int
    where: str = ""
    hint: str = ""

    def lines(self, of_weights: int) -> list[str]:
        """What is said of it, line by line.

        Args:
            of_weights: number of generated weights of the whole model.
        """
        name = printable(self.path) or "the whole model"
        lines = [f"  {name} ({self.weights / of_weights:.1%} of the generated weights): {printable(self.reason)}"]
        lines += [f"    at {printable(self.where)}"] if self.where else []
        return lines + ([f"    to have it traced: {self.hint}"] if self.hint else [])


def opaque_parts(gm: nn.Module, plan: CompressionPlan) -> tuple[OpaqueSummary, ...]:
    """The opaque submodules of a transformed or lowered model, in the order of the model.

    Args:
        gm: the model.
        plan: its plan.
    """
    return tuple(part for part, _ in _with_modules(gm, plan))


def announce_opaque_parts(gm: nn.Module, plan: CompressionPlan, stacklevel: int) -> None:
    """Warn where more than a fifth of the weights to hash are in opaque submodules.

    Layers of torch itself that branch, such as attention, don't count: lowering knows them, and there is no code of the
    user's to change.

    Args:
        gm: a transformed model.
        plan: its plan.
        stacklevel: as of `warnings.warn`, seen from the caller.
    """
    parts = [part for part, module in _with_modules(gm, plan) if not type(module).__module__.startswith("torch.nn.")]
    share = (
        sum(parameter.numel for parameter in plan.hashed if _is_below(parameter, [part.path for part in parts]))
        / plan.hashed_before
    )
    if share <= MOST_OPAQUE:
        return
    # The largest one of each reason, the largest first.
    largest: dict[tuple[str, str], OpaqueSummary] = {}
    for part in sorted(parts, key=lambda part: -part.weights):
        largest.setdefault((part.reason, part.where), part)
    lines = [line for part in list(largest.values())[:_LONGEST] for line in part.lines(plan.hashed_before)]
    if len(largest) > _LONGEST:
        lines.append("  all of them: print(fxhash.summary(gm).table)")
    lines.append("  capture='modules' runs all modules so, without a warning")
    what = "the model" if parts[0].path == "" else f"{len(parts)} submodule{'s' if len(parts) > 1 else ''}"
    warnings.warn(
        f"{share:.0%} of the weights to hash are in {what} that can't be traced. The outputs are right, but lowering "
        "can do less for what runs its own Python code.\n" + "\n".join(lines),
        OpaqueWarning,
        stacklevel=stacklevel + 1,
    )


def _with_modules(gm: nn.Module, plan: CompressionPlan) -> list[tuple[OpaqueSummary, nn.Module]]:
    found = []
    for name, module in gm.named_modules():
        if isinstance(module, OpaqueModule):
            path, reason = original_name(name), module.reason
            part = OpaqueSummary(path, reason.what, _weights_below(path, plan), reason.where, reason.hint)
            found.append((part, module.wrapped_module))
    return found


def _weights_below(path: str, plan: CompressionPlan) -> int:
    """Number of generated weights of the module at `path`."""
    return sum(parameter.numel for parameter in plan.hashed if _is_below(parameter, [path]))


def _is_below(parameter: ParameterPlan, paths: Iterable[str]) -> bool:
    """Whether a parameter, which may have several names, belongs to one of the modules at some paths."""
    prefixes = tuple(f"{path}." if path else "" for path in paths)
    return any(name.startswith(prefixes) for name in (parameter.fqn, *parameter.aliases))
