"""How much the errors of each weight matter: each by itself, or to the outputs of the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxhash.smh.weight_target import WeightTarget

# Each weight counts with this part, at least, of what it would if all were equally important.
_LEAST = 1e-2


def by_gradients(targets: Sequence[WeightTarget], squares: Sequence[float]) -> list[WeightTarget]:
    """The targets with the importance that they have for the outputs of a model.

    An error `e` of a weight, small and independent of all others, moves an output by `gradient . e`. The squared
    gradient of a layer's weight is that of the layer's output times the square of its input, so `squares` over the
    trace of the Gram matrix says how much an error of the layer's outputs matters.

    Args:
        targets: with any importance.
        squares: for each, the squared gradients of a model's outputs by its values, summed over entries and examples.

    Returns:
        Targets of which zeros would have a loss of the number of all rows; none has less than a hundredth of its part.
    """
    plain = [replace(target, importance=1.0) for target in targets]
    relative = [target.relative() for target in plain]
    raw = [
        square / (target.values.numel() * target.mean_importance()) if each.importance else 0.0
        for square, target, each in zip(squares, plain, relative, strict=True)
    ]
    losses = [importance * target.loss(target.values) for importance, target in zip(raw, plain, strict=True)]
    mean = sum(losses) / sum(len(target.values) for target in targets)
    return [
        replace(target, importance=max(importance / mean, _LEAST * each.importance))
        for target, importance, each in zip(targets, raw, relative, strict=True)
    ]
