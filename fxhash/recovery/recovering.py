"""`recover`: a compressed model learns from the original, on inputs without labels."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxhash.capture.calibration import Batch, batches_of
from fxhash.capture.copy_model import copy_model
from fxhash.capture.own_randomness import kept_random_state
from fxhash.errors import PlanError, TrainingError, TransformError, described, shown
from fxhash.recovery.figures import Figures, compare
from fxhash.recovery.hidden_states import correspond
from fxhash.recovery.inputs import Inputs
from fxhash.recovery.loop import Limit, Loop
from fxhash.recovery.state import digest, read_state
from fxhash.smh.checks import check_module
from fxhash.storage.paths import read_path
from fxhash.train_form import lower_for_training
from fxhash.transformed import require_transformed, unwrapped

_PRECISIONS: dict[object, Any] = {"32": "32-true", "bf16": "bf16-mixed"}
# A year, and more than could be trained in it.
_MOST_MINUTES, _MOST_STEPS = 366 * 24 * 60, 10**9


@dataclass(frozen=True)
class Recovery:
    """A recovered model, and how near it is to its teacher on inputs that were held out.

    Attributes:
        model: a transformed model, in the form and mode of the one that was given.
        before: how near that one was.
        after: how near this one is.
        steps: of the optimizer.
        seconds: that they took, by the clock that was given.
        hidden_states: how many hidden states were compared at each step, beside the outputs; 0 if the two models don't
            make the same calls of norms or activations.
    """

    model: nn.Module
    before: Figures
    after: Figures
    steps: int
    seconds: float
    hidden_states: int

    def __str__(self) -> str:
        return (
            f"cosine {self.before.cosine:.4f} -> {self.after.cosine:.4f}, relative error {self.before.error:.4f} -> "
            f"{self.after.error:.4f} on held-out inputs after {self.steps:,} steps in {self.seconds / 60:.1f} minutes"
        )


def recover(
    gm: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Batch],
    *,
    minutes: float = 20.0,
    steps: int | None = None,
    held_out: Iterable[Batch] | None = None,
    folder: str | os.PathLike[str] | None = None,
    learning_rate: float = 0.02,
    precision: str = "32",
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Recovery:
    """Train a transformed model to give the outputs of the original, on inputs without labels (distillation).

    Each step compares the outputs of both models on a batch, and their hidden states: what each norm returns or,
    without norms, each activation. These count less and less, and nothing at the end. A copy of `gm` is trained as
    `lower_for_training` lays it out, by Adam with steps in proportion to the size of each parameter. The learning rate
    falls to zero when the time is over, so that it needs no tuning. Both models run in eval mode: dropout is off, batch
    norms use the statistics that they have.

    Needs the extra `train`: the loop runs in Lightning's Fabric.

    Args:
        gm: a transformed model, such as one started with `init="pretrained"` and `calibration`; it is left untouched.
            All its parameters that require a gradient are trained, on its device.
        teacher: the original model, or another one of equal outputs' shapes; it is left untouched.
        batches: inputs, each a tensor, a tuple of forward's arguments, or a dictionary of them by name. A list is gone
            through in a new order each time; anything else as it comes, again and again if it can be.
        minutes: how long to train, by `clock`.
        steps: how many steps to train instead. With these the result is the same, bit for bit on a CPU, each time.
        held_out: batches to measure on; if omitted, a sixteenth of a list, 8 at most, or the first of what is no list.
        folder: a folder to write what is needed to go on: about once a minute, and at the end. If it holds that of the
            same model already, training goes on there; after the end, with more `minutes` or `steps` only.
        learning_rate: the step of a parameter over its size, at the peak.
        precision: `"32"`, or `"bf16"` for matrix products in bfloat16, faster where the processor has them.
        seed: of the order of a list.
        clock: gives seconds; `time.process_time` counts the time of processors alone.

    Returns:
        A `Recovery`: the model, and the figures before and after. If the outputs came no nearer, its model is as `gm`,
        and both figures are equal.

    Raises:
        PlanError: for an argument out of range, or fewer than two batches without `held_out`.
        TransformError: if `gm` is no transformed model or has nothing to train, `teacher` is no module, `batches` is no
            iterable of batches, or one of the models can't be called with one, or their outputs differ in shape.
        TrainingError: if Lightning is not installed, or the loss is not finite.
        CheckpointError: if the folder can't be used, is damaged, or is of another model.

    Warns:
        UserWarning: if `batches` can be gone through only once and end before the time is over.

    Example:
        >>> import fxhash, torch
        >>> dense = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))
        >>> inputs = [torch.randn(64, 100) for _ in range(8)]
        >>> gm = fxhash.transform(dense, compress=0.3, seed=0)
        >>> recovery = fxhash.recover(gm, dense, inputs, steps=20)
        >>> recovery.after.error < recovery.before.error
        True
    """
    limit = _limit(minutes, steps, clock)
    _check_options(learning_rate, precision, seed)
    gm = unwrapped(gm)
    require_transformed(gm)
    check_module(teacher)
    trained = [each for each in gm.parameters() if each.requires_grad]
    if not trained:
        raise TransformError("none of the parameters of gm requires a gradient: there is nothing to recover with")
    given = Inputs(batches_of(batches, "batches"), None if held_out is None else batches_of(held_out, "held_out"), seed)
    place = None if folder is None else read_path(folder)
    fabric = _fabric(trained[0].device, precision)
    of = digest(gm)
    state = None if place is None else read_state(place, of)

    names = [name for name, _ in teacher.named_parameters(remove_duplicate=False)]
    # A tensor of inference mode can't be trained. Some models draw random numbers in eval mode too.
    with torch.inference_mode(False), torch.enable_grad(), kept_random_state(gm):
        copied = copy_model(gm)
        student = lower_for_training(copied).eval()
        loop = Loop(student, copy_model(teacher, shared=names).eval(), given, limit, fabric, learning_rate)
        hidden = _compared(loop, given.held_out[0])
        before = compare(loop.outputs, loop.teachers_outputs, given.held_out)
        if state is not None:
            loop.restore(state)
        torch.manual_seed(seed)
        loop.run(place, of)
        after = compare(loop.outputs, loop.teachers_outputs, given.held_out)
        if not after.error < before.error:
            copied.load_state_dict(gm.state_dict())
            after = before
    _restore_modes_(copied, gm)
    return Recovery(copied, before, after, loop.steps, loop.spent, hidden)


def _compared(loop: Loop, batch: Batch) -> int:
    """How many hidden states can be compared, after a call of both models."""
    with torch.no_grad():
        (outputs, expected), (hidden, _) = loop.called(batch)
    if not outputs or not correspond(outputs, expected):
        shapes = [[tuple(each.shape) for each in found] for found in (outputs, expected)]
        raise TransformError(
            f"gm returns floating-point tensors of shapes {shown(shapes[0])}, teacher {shown(shapes[1])}: they must be "
            "equal to be compared, and at least one"
        )
    return len(hidden)


def _restore_modes_(model: nn.Module, like: nn.Module) -> None:
    for one, other in zip(model.modules(), like.modules(), strict=True):
        one.training = other.training


def _limit(minutes: float, steps: int | None, clock: Callable[[], float]) -> Limit:
    is_number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if not is_number or not 0 < minutes <= _MOST_MINUTES:
        raise PlanError(f"minutes={shown(minutes)} is no time to train for: give more than 0, such as minutes=20")
    is_whole = isinstance(steps, int) and not isinstance(steps, bool)
    if steps is not None and (not is_whole or not 0 < steps <= _MOST_STEPS):
        raise PlanError(f"steps={shown(steps)} is no number of steps: give 1 or more, or minutes instead")
    try:
        seconds = clock()
    except Exception as error:
        raise PlanError(f"clock={shown(clock)} can't be called ({described(error)}): give time.process_time") from error
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise PlanError(f"clock={shown(clock)} gives no seconds: give a function that does, such as time.process_time")
    return Limit(60.0 * minutes, steps, clock)


def _check_options(learning_rate: float, precision: str, seed: int) -> None:
    is_number = isinstance(learning_rate, (int, float)) and not isinstance(learning_rate, bool)
    if not is_number or not 0 < learning_rate < 1:
        raise PlanError(
            f"learning_rate={shown(learning_rate)} is no step over the size of a parameter: give more than 0 and less "
            "than 1, such as 0.02"
        )
    if not isinstance(precision, str) or precision not in _PRECISIONS:
        raise PlanError(f"precision={shown(precision)} is unknown: give '32' or 'bf16'")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise PlanError(f"seed={shown(seed)} is no whole number of 63 bits")


def _fabric(device: torch.device, precision: str) -> Any:
    try:
        from lightning.fabric import Fabric
    except ImportError as error:
        raise TrainingError("fxhash.recover needs Lightning: pip install 'fxhash[train]'") from error
    accelerator = {"cuda": "gpu"}.get(device.type, device.type)
    devices: Any = 1 if device.type != "cuda" else [device.index or 0]
    # It notes which precision it was asked for.
    logger = logging.getLogger("lightning.fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return Fabric(accelerator=accelerator, devices=devices, precision=_PRECISIONS[precision])
    finally:
        logger.setLevel(level)
