"""Statistics of weights: standard deviations, and the principal components that low ranks come nearest with.

Pure functions on tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of the largest value of a tensor, between which the squares of single precision neither vanish nor overflow.
_LEAST_SQUARED, _MOST_SQUARED = 1e-12, 1e15


class StandardDeviation:
    """Standard deviation of `(left @ right).flatten()[:numel]` for many `left`, without materializing any product.

    The sum of all entries is `(1 @ left) @ (right @ 1)`, and that of their squares the inner product of the two Gram
    matrices; what is cut off the last row is taken away again.

    Args:
        right: shape `(rank, cols)`.

    Example:
        >>> left, right = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0, 3.0]])
        >>> StandardDeviation(right)(left, 4), torch.tensor([1.0, 2.0, 3.0, 2.0]).std().item()
        (0.816496580927726, 0.8164966106414795)
    """

    def __init__(self, right: Tensor) -> None:
        self.right = right.double()
        self.gram = self.right @ self.right.T
        self.sums = self.right.sum(1)

    def __call__(self, left: Tensor, numel: int) -> float:
        """The standard deviation of `numel` entries, two or more.

        Args:
            left: shape `(rows, at most rank)`.
            numel: how many entries count; all but less than a row.
        """
        left = left.double()
        rank, in_last_row = left.shape[1], numel - (left.shape[0] - 1) * self.right.shape[1]
        cut = left[-1] @ self.right[:rank, in_last_row:]
        total = left.sum(0) @ self.sums[:rank] - cut.sum()
        squares = ((left.T @ left) * self.gram[:rank, :rank]).sum() - cut.square().sum()
        return math.sqrt(max((squares - total * total / numel).item() / (numel - 1), 0.0))


def std_and_mean(tensor: Tensor) -> tuple[float, float]:
    """Standard deviation and mean, at least in single precision; the deviation of a constant is exactly zero.

    Args:
        tensor: any shape, not empty.
    """
    values = tensor.detach()
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    smallest, largest = (bound.item() for bound in torch.aminmax(values))
    if smallest == largest:
        return 0.0, smallest
    if _LEAST_SQUARED < max(-smallest, largest) < _MOST_SQUARED:
        # Three times as fast as `torch.std_mean`, and as exact where no digits cancel.
        mean = values.mean().item()
        squares = torch.linalg.vector_norm(values, dim=-1).double().square().sum().item()
        if mean**2 < squares / values.numel() / 4:
            return math.sqrt((squares - values.numel() * mean**2) / (values.numel() - 1)), mean
    std, of_all = torch.std_mean(values)
    return std.item(), of_all.item()


def largest_magnitude(tensor: Tensor) -> float:
    """The largest absolute value of a tensor of any shape, not empty; NaN if it holds NaN."""
    smallest, largest = (bound.item() for bound in torch.aminmax(tensor.detach()))
    return math.nan if math.isnan(smallest) else max(-smallest, largest)


class PrincipalRows:
    """The rows that approximate many matrices best, each by combinations of them: a truncated SVD of all stacked.

    The stack is never materialized: its right singular vectors are the eigenvectors of the sum of Gram matrices.

    Args:
        cols: number of columns of the matrices.
        device: where they are.
    """

    def __init__(self, cols: int, device: torch.device | str) -> None:
        self.gram = torch.zeros(cols, cols, dtype=torch.float64, device=device)
        self.rows = 0

    def add(self, matrix: Tensor) -> None:
        """Count in a matrix of shape `(any, cols)`."""
        for block in matrix.split(4096):
            self.gram.addmm_(block.T.double(), block.double())
        self.rows += matrix.shape[0]

    def factor(self, rank: int) -> tuple[Tensor, Tensor]:
        """The right factor of the best approximation of a rank, and what turns a matrix into its left factor.

        The entries of both factors have the same mean square, over all of the stack, for each of the ranks.

        Args:
            rank: at most the number of columns.

        Returns:
            `right`, of shape `(rank, cols)`, and `to_left`, of shape `(cols, rank)`: `matrix @ to_left @ right` is the
            approximation. The most important rank comes first, so that the first of them are the best of their number.

        Example:
            >>> stack = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
            >>> principal = PrincipalRows(cols=2, device="cpu")
            >>> principal.add(stack)
            >>> right, to_left = principal.factor(rank=1)
            >>> torch.allclose(stack.double() @ to_left @ right, stack.double())
            True
        """
        squares, vectors = torch.linalg.eigh(self.gram)
        squares, vectors = squares.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank]
        # A rank that the matrices don't use is initialized small on the right, so that its left can learn.
        size = squares.sqrt().clamp(min=1e-3 * squares[0].sqrt().item() + 1e-30)
        balance = (size * math.sqrt(self.gram.shape[0] / self.rows)).sqrt()
        return (vectors * balance).T, vectors / balance


def principal_kernels(weight: Tensor, count: int) -> Tensor:
    """The spatial kernels with which a separable convolution comes nearest to a weight: a truncated SVD.

    Args:
        weight: shape `(out, in, *kernel)`.
        count: how many.

    Returns:
        Shape `(count, positions)`; orthogonal to each other and of mean square one.
    """
    pairs = weight.flatten(2).flatten(0, 1).double()
    _, vectors = torch.linalg.eigh(pairs.T @ pairs)
    return vectors.flip(1)[:, :count].T * math.sqrt(pairs.shape[1])


def nearest_pointwise(weight: Tensor, kernels: Tensor) -> Tensor:
    """The pointwise half with which a separable convolution comes nearest to a weight.

    Its kernels are orthogonal to each other and of mean square one, as those of `principal_kernels`.

    Args:
        weight: shape `(out, in, *kernel)`.
        kernels: shape `(count, positions)`.

    Returns:
        Shape `(out, in, count)`.
    """
    return weight.flatten(2) @ kernels.T.to(weight.dtype) / kernels.shape[1]
