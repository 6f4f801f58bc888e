"""How much the outputs of a model change with those of each layer: gradients of random projections, on some inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fxhash.capture.calibration import Batch, call, floating_outputs
from fxhash.capture.copy_model import copy_model
from fxhash.capture.own_randomness import kept_random_state
from fxhash.progress import with_bar
from fxhash.smh.importance import by_outputs
from fxhash.smh.parameters import tied_groups
from fxhash.smh.precision import full_precision


def output_gradients(
    model: nn.Module, white: Mapping[str, Tensor | None], calibration: Iterable[Batch]
) -> dict[str, float] | None:
    """The squared gradients of a model's outputs by those of some of its layers, summed over all outputs and examples.

    The squared gradient of the sum of all outputs, each with a random sign, is on the average the sum over outputs of
    their squared gradients (Hutchinson's estimator); one draw of signs a batch is enough. The gradients by the weights
    are what is computed, since any code may read these. A copy of the model runs in eval mode, forward and backward,
    which takes as much memory as a training step on a batch.

    Args:
        model: it is left untouched.
        white: for each weight, by its name, the `whitening` of its layer's inputs.
        calibration: the batches.

    Returns:
        Means over the channels of each layer. None if no output has a gradient, or one is not finite.
    """
    with torch.inference_mode(False):
        running = copy_model(model).eval().requires_grad_(False)
    weights = {group[0]: same[0].requires_grad_() for group, same in tied_groups(running) if group[0] in white}
    signs = torch.Generator().manual_seed(0)
    total = dict.fromkeys(weights, 0.0)
    for batch in with_bar(calibration, "differentiating"):
        # The model did run without gradients: whatever is raised, its code can't be differentiated.
        try:
            found = _gradients(running, batch, list(weights.values()), signs)
        except Exception:
            return None
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                total[name] += by_outputs(gradient.to_dense(), white[name])
    return total if 0 < sum(total.values()) < math.inf else None


def _gradients(
    model: nn.Module, batch: Batch, weights: list[Tensor], signs: torch.Generator
) -> tuple[Tensor | None, ...]:
    """The gradients of the sum of all outputs, each with a random sign."""
    device = weights[0].device
    with kept_random_state(model), torch.inference_mode(False), torch.enable_grad(), full_precision(device.type):
        outputs = [each for each in floating_outputs(call(model, batch, device)) if each.requires_grad]
        drawn = [torch.randint(2, each.shape, generator=signs) * 2 - 1 for each in outputs]
        directions = [sign.to(each) for sign, each in zip(drawn, outputs, strict=True)]
        return torch.autograd.grad(outputs, weights, directions, allow_unused=True)
