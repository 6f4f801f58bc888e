"""How much the outputs of a model change with each of its weights: gradients of their random projections."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fxhash.capture.calibration import Batch, call, floating_outputs
from fxhash.capture.copy_model import copy_model
from fxhash.progress import with_bar
from fxhash.smh.parameters import tied_groups
from fxhash.smh.precision import full_precision


def squared_gradients(
    model: nn.Module, names: Iterable[str], calibration: Iterable[Batch], draws: int = 1
) -> dict[str, float] | None:
    """The squared gradients of a model's outputs by some weights, summed over all outputs, examples and entries.

    An entry of the outputs counts with its square: the sum over outputs of squared gradients is what the square of the
    gradient of their sum, each with a random sign, is on the average (Hutchinson's estimator). A copy of the model runs
    in eval mode, forward and backward, which takes as much memory as a training step on a batch.

    Args:
        model: it is left untouched.
        names: of its parameters; of tied ones, the first.
        calibration: the batches.
        draws: of signs for each batch.

    Returns:
        The sums, by the names of the weights. None if outputs have no finite gradient by any of them, or can't be
        differentiated.
    """
    wanted = set(names)
    with torch.inference_mode(False):
        running = copy_model(model).eval().requires_grad_(False)
        weights = {group[0]: same[0] for group, same in tied_groups(running) if group[0] in wanted}
        for weight in weights.values():
            weight.requires_grad_()
    device = next(iter(weights.values())).device
    signs = torch.Generator().manual_seed(0)
    total = dict.fromkeys(weights, 0.0)
    for batch in with_bar(calibration, "differentiating"):
        for _ in range(draws):
            # Whatever code of a user can't be differentiated, it did run without gradients.
            try:
                found = _gradients(running, batch, list(weights.values()), device, signs)
            except Exception:
                return None
            for name, gradient in zip(weights, found, strict=True):
                total[name] += 0.0 if gradient is None else gradient.double().square().sum().item()
    return total if 0 < sum(total.values()) < float("inf") else None


def _gradients(
    model: nn.Module, batch: Batch, weights: list[Tensor], device: torch.device, signs: torch.Generator
) -> tuple[Tensor | None, ...]:
    """The gradients of the sum of all outputs with random signs."""
    with torch.inference_mode(False), torch.enable_grad(), full_precision(device.type):
        outputs = [each for each in floating_outputs(call(model, batch, device)) if each.requires_grad]
        directions = [
            (torch.randint(0, 2, each.shape, generator=signs) * 2 - 1).to(each.device, each.dtype) for each in outputs
        ]
        return torch.autograd.grad(outputs, weights, directions, allow_unused=True)
