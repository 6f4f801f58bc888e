"""How much the errors of a layer's outputs matter to the outputs of the whole model, by gradients of its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fxhash.smh.weight_target import WeightTarget

# Each weight counts with this part, at least, of what it would if all were equally important.
_LEAST = 1e-2


def mean_square(gradient: Tensor, inputs: Tensor) -> float:
    """The squared gradient by a layer's outputs, on their average, from that by its weight.

    The gradient by an entry of the weight is that by the output times the input. Where these don't depend on each
    other, the square of one over the mean square of the input is that of the gradient by the output.

    Args:
        gradient: shape of the weight, `(out, ...)`.
        inputs: the mean square of each input of an output channel, shape `(length,)`; of shape `(1,)` and 1 for a
            parameter that is no layer's weight.

    Example:
        >>> import torch
        >>> mean_square(torch.tensor([[2.0, 8.0], [2.0, 8.0]]), torch.tensor([1.0, 16.0]))
        4.0
    """
    return (gradient.double().square().reshape(-1, len(inputs)) / inputs).mean().item()


def by_gradients(targets: Sequence[WeightTarget], gradients: Sequence[float]) -> list[WeightTarget]:
    """The targets, each with the importance that its errors have for the outputs of the model.

    An error of a layer's outputs moves those of the model by the gradient times the error. Errors are small, and those
    of different layers, channels and inputs independent of each other, or so it is assumed.

    Args:
        targets: each with its importance by relative errors.
        gradients: for each, the squared gradient of the model's outputs by those of its layer.

    Returns:
        Targets of which zeros would have a loss of the number of all rows; each at least a hundredth of what it has by
        relative errors, which is also what counts for a layer that no output depends on.
    """
    losses = [
        gradient * replace(target, importance=1.0).loss(target.values)
        for gradient, target in zip(gradients, targets, strict=True)
    ]
    mean = sum(losses) / sum(len(target.values) for target in targets)
    if not mean > 0:
        return list(targets)
    return [
        replace(target, importance=max(gradient / mean if target.importance else 0.0, _LEAST * target.importance))
        for gradient, target in zip(gradients, targets, strict=True)
    ]
