"""The loop of a recovery: steps until its time is over, in Lightning's Fabric."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxhash.capture.calibration import Batch, call, floating_outputs
from fxhash.errors import PlanError, TrainingError, TransformError, described
from fxhash.progress import bar
from fxhash.recovery.hidden_states import HiddenStates, correspond, relative_errors
from fxhash.recovery.inputs import Inputs
from fxhash.recovery.state import prepare_folder, write_state

# The state is written after so many seconds, and at the end.
_SECONDS_BETWEEN_STATES = 60.0
# The share of the time in which the learning rate rises.
_WARM_UP = 0.03
_MOST_GRADIENT = 1.0


# Tensors of the student, and as many of the teacher.
Pairs = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Limit:
    """When a recovery ends: after some seconds or some steps.

    Attributes:
        seconds: of the clock.
        steps: of the optimizer; they count if they are given.
        clock: what seconds are read from.
    """

    seconds: float
    steps: int | None
    clock: Callable[[], float]

    def share(self, seconds: float, steps: int) -> float:
        """How much of it is over, from 0 to 1."""
        return min(seconds / self.seconds if self.steps is None else steps / self.steps, 1.0)


def rate_at(share: float) -> float:
    """The learning rate over its peak when this share of the time is over: a short rise, then half a cosine to zero.

    Example:
        >>> [round(rate_at(share), 2) for share in (0.0, 0.03, 0.5, 1.0)]
        [0.1, 1.0, 0.52, 0.0]
    """
    if share < _WARM_UP:
        return 0.1 + 0.9 * share / _WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (share - _WARM_UP) / (1 - _WARM_UP))


def optimizer_of(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Adam with a step for each parameter in proportion to its size, so that one rate fits factors of any scale."""
    groups = []
    for parameter in parameters:
        size = parameter.detach().double().square().mean().sqrt().item() if parameter.numel() else 0.0
        peak = rate * max(size, 1e-3 if parameter.dim() > 1 else 0.05)
        groups.append({"params": [parameter], "lr": peak, "peak": peak})
    return torch.optim.Adam(groups, betas=(0.9, 0.98))


class Loop:
    """A student, its teacher, and how far they are.

    Args:
        student: the model to train, in eval mode.
        teacher: in eval mode.
        inputs: what both are given.
        limit: when to stop.
        fabric: Lightning's.
        rate: the step of a parameter over its size, at the peak.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, inputs: Inputs, limit: Limit, fabric: Any, rate: float
    ) -> None:
        self.student, self.teacher = student, teacher
        self.inputs, self.limit, self.fabric, self.rate = inputs, limit, fabric, rate
        self.parameters = [each for each in student.parameters() if each.requires_grad]
        self.steps, self.spent = 0, 0.0
        self.device = next(iter(self.parameters)).device
        self.teachers_device = next((each.device for each in teacher.parameters()), self.device)
        self.wrapped, self.optimizer = fabric.setup(student, optimizer_of(self.parameters, rate))

    def outputs(self, batch: Batch) -> list[Tensor]:
        """The student's."""
        # The backward pass of the fused attention is the slower one on CPUs.
        plain = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        with plain:
            return floating_outputs(_called(self.wrapped, "gm", batch, self.device))

    @torch.no_grad()
    def teachers_outputs(self, batch: Batch) -> list[Tensor]:
        """The teacher's."""
        with self.fabric.autocast():
            return floating_outputs(_called(self.teacher, "teacher", batch, self.teachers_device))

    def called(self, batch: Batch) -> tuple[Pairs, Pairs]:
        """Outputs and hidden states, of student and teacher; none of the latter if they don't correspond."""
        with torch.no_grad(), HiddenStates() as theirs:
            expected = self.teachers_outputs(batch)
        with HiddenStates() as ours:
            outputs = self.outputs(batch)
        hidden = (ours.values, theirs.values) if correspond(ours.values, theirs.values) else ([], [])
        return (outputs, expected), hidden

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The relative error of the outputs and of the hidden states; None for these if they don't correspond."""
        outputs, hidden = self.called(batch)
        return relative_errors(*outputs), relative_errors(*hidden) if hidden[0] else None

    def step(self, batch: Batch) -> float:
        """One step of the optimizer; the loss before it."""
        share = self.limit.share(self.spent, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_at(share)
        of_outputs, of_hidden = self.losses(batch)
        loss = of_outputs if of_hidden is None else of_outputs + (1 - share) * of_hidden
        if not math.isfinite(value := loss.item()):
            raise TrainingError(
                f"the loss is not finite after {self.steps} steps: give batches and a teacher whose outputs are, or a "
                "lower learning_rate"
            )
        self.fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, _MOST_GRADIENT)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return value

    def run(self, folder: Path | None, of: str) -> None:
        """Train until the time is over, or the inputs are."""
        last_state = time.monotonic()
        prepared = False
        begun, earlier = self.limit.clock(), self.spent
        with bar("recovering") as show:
            batches = iter(self.inputs)
            while self.limit.share(self.spent, self.steps) < 1:
                batch = next(batches, None)
                if batch is None:
                    self._say_that_batches_ended()
                    break
                loss = self.step(batch)
                # Only now: until both models took a batch, nothing is written.
                if folder is not None and not prepared:
                    prepare_folder(folder)
                    prepared = True
                self.spent = earlier + self.limit.clock() - begun
                show(self.limit.share(self.spent, self.steps), f"step {self.steps}, loss {loss:.4f}")
                if folder is not None and time.monotonic() - last_state >= _SECONDS_BETWEEN_STATES:
                    self.write(folder, of)
                    last_state = time.monotonic()
        if folder is not None:
            self.write(folder, of)

    def _say_that_batches_ended(self) -> None:
        if not self.steps:
            raise PlanError("batches holds no batch to learn from: give some, such as a list of inputs")
        warnings.warn(
            f"batches ended after {self.steps:,} steps, before the time was over: give a list, which is gone through "
            "again",
            UserWarning,
            stacklevel=4,
        )

    def write(self, folder: Path, of: str) -> None:
        """Write all that is needed to go on."""
        state = {
            "of": of,
            "model": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "spent": float(self.spent),
            "steps": self.steps,
            "position": self.inputs.position,
        }
        write_state(folder, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a state was written.

        Raises:
            PlanError: if it was written with another learning rate, which the steps so far are of.
        """
        peak, stored = (
            groups[0]["peak"] for groups in (self.optimizer.param_groups, state["optimizer"]["param_groups"])
        )
        if not math.isclose(peak, stored, rel_tol=1e-6):
            before = self.rate * stored / peak
            raise PlanError(
                f"learning_rate={self.rate:g}, but the recovery in this folder began with {before:g}: give that, or "
                "another folder"
            )
        self.student.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.spent, self.steps, self.inputs.position = state["spent"], state["steps"], state["position"]


def _called(model: Callable[..., Any], name: str, batch: Batch, device: torch.device) -> Any:
    """What a model returns for a batch; a TransformError if it can't be called with it."""
    try:
        return call(model, batch, device)
    except Exception as error:
        raise TransformError(
            f"batches: {name} can't be called with one ({described(error)}): give the inputs of its forward alone, a "
            "tensor, a tuple of arguments or a dictionary of them by name"
        ) from error
