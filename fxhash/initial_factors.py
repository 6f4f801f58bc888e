"""The factors of a transformed model before its first step: random, or those that come nearest to the original."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from fxhash.capture.calibration import Batch, collect_moments, layer_weights
from fxhash.capture.copy_model import copy_model
from fxhash.capture.output_gradients import output_gradients
from fxhash.capture.paired_inputs import paired_moments
from fxhash.errors import PlanError, shown
from fxhash.progress import with_bar
from fxhash.smh.calibrated_start import CalibratedFit, fit_to_inputs_, with_fitted_ranks
from fxhash.smh.calibration import MomentStore
from fxhash.smh.fitting import ROUNDS
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.importance import whitening
from fxhash.smh.initialization import fit_, initialize_
from fxhash.smh.parameters import tied_groups
from fxhash.smh.plan import CompressionPlan

INITS = ("random", "pretrained")

# Layers are fitted again in so many stages, each to the inputs that the stages before leave, whose errors are made up
# for by this share: all of it, or none, was worse for a sentence encoder.
_STAGES, _SHARE = 8, 0.5


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
        plans: of several, the one counts that leaves least loss on the calibration before any round of improvement; its
            ranks are then replaced by those that save most, for as many parameters.
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

    def fitted(plan: CompressionPlan, rounds: int, gradients: Mapping[str, float] | None = None) -> _Start:
        generator = SMHGenerator(plan, device)
        initialize_(generator, originals, random)
        return _Start(generator, fit_to_inputs_(generator, originals, seen, rounds, gradients))

    losses = [fitted(plan, 0).fit.loss for plan in with_bar(plans, "choosing columns")]
    # By relative errors and ranks by size: with gradients, and the best ranks of each plan, a ResNet-20 at 10 % got
    # regular convolutions, which left it far less accurate.
    plan = plans[losses.index(min(losses))]
    again = iter(calibration) is not calibration
    gradients = output_gradients(model, whitening(hashed, seen), calibration) if again else None
    by_size = fitted(plan, 0, gradients).fit
    start = fitted(with_fitted_ranks(plan, by_size), ROUNDS, gradients)
    if start.fit.loss > by_size.loss:
        start = fitted(plan, ROUNDS, gradients)
    if again:
        _follow_compressed_inputs_(start, seen, model, hashed, calibration)
    return start.generator


class _Start(NamedTuple):
    """A generator, and what its factors were fitted to."""

    generator: SMHGenerator
    fit: CalibratedFit


def _follow_compressed_inputs_(
    start: _Start,
    seen: MomentStore,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    calibration: Iterable[Batch],
) -> None:
    """Fit layers again, some at a time in the order in which they are called, to the inputs they have by then.

    What was there before stays if the outputs of the model on the calibration come no nearer.
    """
    generator, fit = start
    whole = [name for name in seen.order if len(seen[name].products) == 1]
    if not whole:
        return
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    # Tensors of inference mode would hide which operations are computed with them.
    with torch.inference_mode(False):
        original, compressed = copy_model(model, shared=names).eval(), copy_model(model).eval()
    own = {group[0]: same[0] for group, same in tied_groups(compressed) if group[0] in weights}

    def update(changed: Iterable[str]) -> None:
        with torch.no_grad():
            for name in changed:
                own[name].copy_(generator(name))

    update(own)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    size = -(-len(whole) // _STAGES)
    stages = [whole[start : start + size] for start in range(0, len(whole), size)]
    errors = []
    for stage in with_bar([*stages, []], "following inputs"):
        found, error = paired_moments((original, compressed), (weights, own), stage, calibration)
        errors.append(error)
        for name, each in found.items():
            fit.follow_(generator, name, each.products, each.squares, _SHARE)
        update(found)
    if not errors[-1] < errors[0]:
        generator.load_state_dict(before)
