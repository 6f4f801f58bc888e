"""How much the errors of a layer's outputs matter to the outputs of the whole model, by gradients of its weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxhash.smh.calibration import MomentStore
from fxhash.smh.weight_target import WeightTarget, cholesky, damped

# Each weight counts with this part, at least, of what it would if all were equally important.
_LEAST = 1e-2
# Of the mean square of an input: what is added to each.
_DAMPING = 1e-2


def whitening(names: Iterable[str], seen: MomentStore) -> dict[str, Tensor | None]:
    """What makes of the inputs of some weights' layers ones that are uncorrelated, each with a mean square of one.

    Directions that inputs hardly have are made no larger than those that have a hundredth of the mean.

    Args:
        names: of the weights.
        seen: the moments of the inputs.

    Returns:
        Matrices of shape `(blocks, size, size)`; None for a parameter that is no layer's weight.
    """
    found: dict[str, Tensor | None] = dict.fromkeys(names)
    for group in seen.readers:
        gram = group.moments.gram.double()
        roots = torch.stack([cholesky(block) for block in damped(gram, _DAMPING)])
        inverse = torch.linalg.solve_triangular(roots, torch.eye(gram.shape[1]).to(gram), upper=False)
        mean_square = ((inverse @ gram) * inverse).sum() / gram.shape[:2].numel()
        scale = mean_square.rsqrt() if mean_square > 0 else 0.0
        white = (inverse * scale).to(group.moments.products)
        found.update({name: white for name in group.names if name in found})
    return found


def by_outputs(gradient: Tensor, white: Tensor | None) -> float:
    """The squared gradient by a layer's outputs, on their average, from that by its weight.

    The gradient by a row of the weight is that by the output times the input. Where these don't depend on each other,
    its mean square, of white inputs, is that of the gradient by the output.

    Args:
        gradient: shape of the weight, `(out, ...)`.
        white: the `whitening` of its inputs; None if there are none, and its values are the outputs.

    Example:
        >>> by_outputs(torch.tensor([[2.0, 8.0], [2.0, 8.0]]), torch.tensor([[[1.0, 0.0], [0.0, 0.25]]]))
        4.0
    """
    if white is not None:
        gradient = gradient.reshape(-1, *white.shape[:2]).transpose(0, 1).to(white) @ white.mT
    return gradient.double().square().mean().item()


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
    # Only their ratios count; by the largest, since the smallest numbers of all have no digits to be multiplied with.
    largest = max(gradients, default=0.0) or 1.0
    gradients = [gradient / largest for gradient in gradients]
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
