"""Factors that come nearest to weights by the errors of their layers' outputs: alternating least squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fxhash.progress import with_bar
from fxhash.smh.factored_weight import FactoredWeight, conjugate_gradients
from fxhash.smh.weight_target import damped

ROUNDS = 6
_STEPS_OF_RIGHT = 6


def total_loss(weights: Sequence[FactoredWeight], right: Tensor) -> float:
    """The loss of all weights."""
    return sum(weight.loss(right) for weight in weights)


def segment_gram(weights: Sequence[FactoredWeight]) -> Tensor:
    """How much the error of each entry of a row of `W` matters, on the average of all rows; shape `(cols, cols)`.

    A row that begins amid an output channel counts with its mean alone.
    """
    cols = weights[0].cols
    total = weights[0].left.new_zeros(cols, cols, dtype=torch.float64)
    for weight in weights:
        total += weight.left.shape[0] * weight.target.importance * _segment_gram(weight)
    return total / sum(weight.left.shape[0] for weight in weights)


def _segment_gram(weight: FactoredWeight) -> Tensor:
    cols, length, gram = weight.cols, weight.target.values.shape[1], weight.target.gram
    identity = torch.eye(cols, dtype=torch.float64, device=weight.left.device)
    if gram is None:
        return identity
    size = gram.shape[1]
    if length % cols == 0 and size % cols == 0:
        parts = size // cols
        blocks = gram.view(len(gram), parts, cols, parts, cols).diagonal(dim1=1, dim2=3)
        return blocks.double().mean(dim=(0, 3))
    if cols % size == 0 and (cols % length == 0 or length % cols == 0):
        count = cols // size
        repeated = [gram[index % len(gram)] for index in range(count)]
        return torch.block_diag(*repeated).double()
    return identity * gram.diagonal(dim1=1, dim2=2).double().mean()


def whitened_start(weights: Sequence[FactoredWeight], rank: int) -> Tensor:
    """The principal rows of all weights where errors count by `segment_gram`; shape `(rank, cols)`.

    With identities for Gram matrices they are the rows of the truncated singular value decomposition of all stacked.
    """
    metric = damped(segment_gram(weights).unsqueeze(0), 1e-6).squeeze(0)
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp(min=1e-12 * values[-1].item() + 1e-300)
    whiten = (vectors * values.sqrt()) @ vectors.T
    unwhiten = (vectors / values.sqrt()) @ vectors.T
    products = torch.zeros_like(metric)
    for weight in weights:
        rows = weight.in_rows(weight.target.values)
        for block in rows.split(4096):
            products += weight.target.importance * (block.T @ block).double()
    _, principal = torch.linalg.eigh(whiten @ products @ whiten)
    right = principal.flip(1)[:, :rank].T @ unwhiten
    return (right / right.norm(dim=1, keepdim=True).clamp(min=1e-300)).to(weights[0].left.dtype)


def improve_right(weights: Sequence[FactoredWeight], right: Tensor, steps: int = _STEPS_OF_RIGHT) -> Tensor:
    """A `right` of less loss with the present `left` of all weights, by conjugate gradients with products alone.

    The system couples all entries of `right`, a generalised Sylvester equation. It is preconditioned by what it would
    be if all rows of `W` had one Gram matrix.
    """
    rank = right.shape[0]

    def over_all(of_weight: Callable[[FactoredWeight], Tensor]) -> Tensor:
        total = torch.zeros_like(right)
        for weight in weights:
            total[: weight.left.shape[1]] += of_weight(weight)
        return total

    def gradient(weight: FactoredWeight) -> Tensor:
        return weight.to_right(weight.target.weighed(weight.error(right)))

    def apply(direction: Tensor) -> Tensor:
        return over_all(lambda weight: weight.to_right(weight.target.weighed(weight.of_right(direction))))

    squares = right.new_zeros(rank, rank, dtype=torch.float64)
    for weight in weights:
        size = weight.left.shape[1]
        squares[:size, :size] += weight.target.mean_importance() * (weight.left.T @ weight.left).double()
    of_left = _inverse(squares).to(right.dtype)
    of_inputs = _inverse(segment_gram(weights)).to(right.dtype)
    step = conjugate_gradients(apply, over_all(gradient), steps, lambda residual: of_left @ residual @ of_inputs)
    return right + step


def _inverse(matrix: Tensor) -> Tensor:
    matrix = damped(matrix.unsqueeze(0), 1e-6).squeeze(0)
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors / values.clamp(min=1e-12 * values[-1].item() + 1e-300)) @ vectors.T


def fit(
    weights: Sequence[FactoredWeight],
    starts: Sequence[Tensor],
    rounds: int = ROUNDS,
    between: Callable[[Tensor], None] = lambda right: None,
) -> Tensor:
    """Set the `left` of all weights, and find the `right` of shape `(rank, cols)`, that have little loss together.

    Args:
        weights: at least one; changed in place.
        starts: candidates for `right`; the best with its own `left` is taken, and never made worse.
        rounds: of alternating least squares.
        between: called after each round, with `right`; may lower the loss otherwise.

    Returns:
        `right` with orthonormal rows.
    """
    losses = []
    for start in starts:
        for weight in weights:
            weight.solve_left_(start)
        losses.append(total_loss(weights, start))
    least = min(losses)
    right = starts[losses.index(least)]
    for weight in weights:
        weight.solve_left_(right)
    for _ in with_bar(range(rounds), "fitting factors"):
        before = [weight.left.clone() for weight in weights]
        improved = improve_right(weights, right)
        for weight in weights:
            weight.solve_left_(improved)
        loss = total_loss(weights, improved)
        if not loss < least:
            for weight, left in zip(weights, before, strict=True):
                weight.left = left
            break
        least, right = loss, improved
        between(right)
    return orthonormal_(weights, right)


def orthonormal_(weights: Sequence[FactoredWeight], right: Tensor) -> Tensor:
    """The `right` of an equal product whose rows are orthonormal, the first ones for the same ranks; `left` follows."""
    vectors, upper = torch.linalg.qr(right.T.double())
    lower = upper.T
    for weight in weights:
        size = weight.left.shape[1]
        weight.left = (weight.left.double() @ lower[:size, :size]).to(weight.left.dtype)
    return vectors.T.to(right.dtype)
