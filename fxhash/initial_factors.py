"""The factors of a transformed model before its first step: random, or those that come nearest to the original."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx, nn

from fxhash.capture.calibration import Batch, collect_moments, layer_weights
from fxhash.errors import PlanError, shown
from fxhash.smh.calibrated_start import fit_to_inputs_
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.initialization import fit_, initialize_

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


def initialize_factors_(
    generator: SMHGenerator,
    originals: Mapping[str, Tensor],
    random: torch.Generator | None,
    init: str,
    calibration: Iterable[Batch] | None,
    model: nn.Module,
    traced: fx.GraphModule,
) -> None:
    """Fill a generator, in place.

    Args:
        generator: not on the meta device.
        originals: the original parameters, at least those that are hashed, by their names.
        random: source of randomness; torch's global one if None.
        init: as of `fxhash.transform`, as is `calibration`.
        calibration: batches of inputs.
        model: the original.
        traced: what was captured of it.
    """
    initialize_(generator, originals, random)
    if calibration is not None:
        hashed = {parameter.fqn: originals[parameter.fqn] for parameter in generator.plan.hashed}
        layers = layer_weights(model, traced, hashed)
        fit_to_inputs_(generator, originals, collect_moments(model, hashed, layers, calibration))
    elif init == "pretrained":
        fit_(generator, originals)
