"""The factors of a transformed model before its first step: random, or those that come nearest to the original."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from fxhash.capture.calibration import Batch, collect_moments, layer_weights
from fxhash.errors import PlanError, shown
from fxhash.progress import with_bar
from fxhash.smh.calibrated_start import fit_to_inputs_
from fxhash.smh.fitting import ROUNDS
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.initialization import fit_, initialize_
from fxhash.smh.plan import CompressionPlan

INITS = ("random", "pretrained")


def check_start(init: object, calibration: object) -> None:
    """Raise PlanError for an unknown `init`, or calibration without one that uses it; warn where one lacks it."""
    if not isinstance(init, str) or init not in INITS:
        raise PlanError(f"init={shown(init)} is unknown: give one of {', '.join(map(repr, INITS))}")
    if calibration is not None and init != "pretrained":
        raise PlanError("calibration is what init='pretrained' is fitted to: give both, or neither")
    if calibration is None and init == "pretrained":
        warnings.warn(
            "init='pretrained' without calibration fits the values of weights, which says little of a layer's outputs: "
            "give calibration=[batches of inputs] to fit these, far nearer to the model where it is trained little",
            UserWarning,
            stacklevel=3,
        )


def initial_generator(
    plans: Sequence[CompressionPlan],
    device: torch.device,
    originals: Mapping[str, Tensor],
    random: torch.Generator | None,
    init: str,
    calibration: Iterable[Batch] | None,
    model: nn.Module,
    traced: fx.GraphModule,
) -> SMHGenerator:
    """The generator of a transformed model, with its factors; without values on the meta device.

    Args:
        plans: of several, the one counts that leaves least loss on the calibration before any round of improvement.
        device: where it is to be.
        originals: the original parameters, at least those that are hashed, by their names.
        random: source of randomness; torch's global one if None.
        init: as of `fxhash.transform`, as is `calibration`.
        calibration: batches of inputs.
        model: the original.
        traced: what was captured of it.
    """
    if calibration is None or device.type == "meta":
        generator = SMHGenerator(plans[0], device)
        if device.type != "meta":
            initialize_(generator, originals, random)
            if init == "pretrained":
                fit_(generator, originals)
        return generator
    hashed = {parameter.fqn: originals[parameter.fqn] for parameter in plans[0].hashed}
    seen = collect_moments(model, hashed, layer_weights(model, traced, hashed), calibration)
    generators, losses = [], []
    for plan in with_bar(plans, "choosing columns"):
        generators.append(SMHGenerator(plan, device))
        initialize_(generators[-1], originals, random)
        losses.append(fit_to_inputs_(generators[-1], originals, seen, rounds=0 if len(plans) > 1 else ROUNDS))
    generator = generators[losses.index(min(losses))]
    if len(plans) > 1:
        fit_to_inputs_(generator, originals, seen)
    return generator


def random_generator(seed: int | torch.Generator | None) -> torch.Generator | None:
    """The source of randomness that a seed stands for; PlanError if it stands for none, or is not on the CPU."""
    if seed is None:
        return None
    if isinstance(seed, torch.Generator):
        if seed.device.type != "cpu":
            raise PlanError(f"seed is a torch.Generator on {seed.device}: give one on the CPU, or a whole number")
        return seed
    try:
        return torch.Generator().manual_seed(operator.index(seed))
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(
            f"seed={shown(seed)} is neither a whole number of 64 bits nor a torch.Generator on the CPU"
        ) from error
