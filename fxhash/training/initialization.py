"""The model of a run before its first step: random weights, or those of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxhash
from fxhash.errors import TrainingError
from fxhash.training.data import ImageData
from fxhash.training.folder import build_dense, load_model, read_configuration
from fxhash.training.options import RunOptions
from fxhash.training.preprocessing import normalized

# Training images that a start from a run's weights is calibrated on, and how many of them are computed together.
_CALIBRATED_ON, _AT_ONCE = 1024, 64


def initial_model(options: RunOptions, data: ImageData) -> nn.Module:
    """The model at its initialization, which the seed determines; lowered for training if compressed and faster.

    Raises:
        TrainingError: if the model can't take images of this size, has no such options, or no factors where their bits
            are given, or if the run to start from has another model.
        CheckpointError: if the file of that run is damaged.
    """
    recipe = options.recipe
    if options.compress is None and recipe.factor_bits < 32:
        raise TrainingError(
            f"the dense model has no factors to train in {recipe.factor_bits} bits: give --compress, such as "
            "--compress 0.1, or omit --factor-bits"
        )
    channels, *size = data.train_images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed GPUs too.
        torch.default_generator.manual_seed(options.seed)
        dense = build_dense(options, len(data.classes), channels, size)
        try:
            with torch.no_grad():
                logits = dense.eval()(torch.zeros(2, channels, *size))
        except Exception as error:  # Whatever the model raises.
            raise TrainingError(
                f"{options.model} can't take images of {size[1]} x {size[0]} pixels: choose another model, or give "
                f"--image-size for a folder of images ({error})"
            ) from error
        if not isinstance(logits, torch.Tensor) or logits.shape != (2, len(data.classes)):
            given = (
                f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else f"type {type(logits).__name__}"
            )
            raise TrainingError(
                f"{options.model} must give one logit for each of the {len(data.classes)} classes, shape "
                f"(2, {len(data.classes)}) for two images, not {given}: its factory may have a parameter num_classes"
            )
        dense.train()
        if options.start is not None:
            _initialize_from_run_(dense, options, Path(options.start))
        if options.compress is None:
            return dense
        examples = (torch.rand(2, channels, *size),)
        start: dict[str, Any] = {"seed": options.seed, "example_inputs": examples}
        if options.start is not None:
            start |= {"init": "pretrained", "calibration": _calibration(data)}
        gm = fxhash.transform(dense, options.compress, **start)
        if recipe.factor_bits < 32:
            gm = fxhash.quantize_factors(gm, recipe.factor_bits, group=recipe.factor_group or None)
        return gm if _generates_faster(options) else fxhash.lower_for_training(gm)


def _generates_faster(options: RunOptions) -> bool:
    """Whether a step takes less with generated weights than with factors.

    So it is where a processor has bfloat16: of a ResNet-20 at 10 % and 32 x 32 pixels, 238 ms instead of 313.
    """
    is_on_cpu = options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available())
    return is_on_cpu and options.recipe.precision == "bf16"


def _calibration(data: ImageData) -> list[Tensor]:
    """Normalized training images, evenly taken from all, in batches."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in data.statistics())
    images = data.train_images[:: max(len(data.train_images) // _CALIBRATED_ON, 1)][:_CALIBRATED_ON]
    return list(normalized(images, mean, std).split(_AT_ONCE))


def _initialize_from_run_(dense: nn.Module, options: RunOptions, folder: Path) -> None:
    """Set the weights of a model to those of a finished run, in place."""
    started, _ = read_configuration(folder)
    if (started.network, started.compress) != (options.network, None):
        kind = "dense" if started.compress is None else "compressed"
        raise TrainingError(
            f"can't start from {str(folder)!r}, a run of a {kind} {started.network}: give one of a dense "
            f"{options.network}"
        )
    try:
        dense.load_state_dict(load_model(folder).state_dict())
    except RuntimeError as error:
        raise TrainingError(f"the model of {str(folder)!r} does not fit these images: {error}") from error
