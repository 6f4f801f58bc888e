"""The arithmetic of Structured Multi-Hashing: pure functions on tensors.

All hashed parameters fill one global matrix `W = left @ right` (Eban et al., CVPR 2020, arXiv 1911.11177), each from a
row of its own on, in row-major order. So the weight of a parameter is the product of its own rows of `left` with
`right`, flattened and cut to size. Nothing here knows of `torch.fx` or `torch.nn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

Arguments = ParamSpec("Arguments")


def rows_for(numel: int, cols: int) -> int:
    """Number of rows of `W` that a parameter of `numel` elements takes.

    Example:
        >>> rows_for(7, cols=3)
        3
    """
    return -(-numel // cols)


def fits(shape: Sequence[int], cols: int) -> bool:
    """Whether a weight of this shape can be multiplied by in turn: rows and output channels nest.

    Example:
        >>> fits((64, 32, 3, 3), cols=144), fits((64, 32, 3, 3), cols=576), fits((64, 32, 3, 3), cols=100)
        (True, True, False)
    """
    channel, kernel = math.prod(shape[1:]), math.prod(shape[2:])
    return len(shape) >= 2 and (cols % channel == 0 or (channel % cols == 0 and cols % kernel == 0))


def recorded(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Let `torch.fx` record a call of `function` as one node, as it does with torch's own functions.

    Unpickling a graph module traces its code; without this, it would trace into the function.
    """

    @wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        if has_torch_function(args):
            return handle_torch_function(run, args, *args, **kwargs)
        return function(*args, **kwargs)

    return run


@recorded
def generate(
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    shift: Tensor | None = None,
    channel_scale: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    """One weight: `channel_scale * (left @ right[:rank] + shift).flatten()[:numel].view(shape)`.

    Args:
        left: the parameter's own rows of the left factor, scaled; shape `(rows, rank)`.
        right: the shared right factor, of shape `(at least rank, cols)`.
        shape: the weight's shape, of more than `(rows - 1) * cols` and at most `rows * cols` elements.
        shift: a constant to add, of shape `()`; nothing where left out.
        channel_scale: a factor for each output channel, of shape `(shape[0],)`; one where left out.
        scratch: memory to write to, of shape `(at least rows * cols,)`; new memory where left out.

    Returns:
        A contiguous tensor of `shape`.

    Example:
        >>> left, right = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0, 3.0]])
        >>> generate(left, right, (2, 2)).tolist()
        [[1.0, 2.0], [3.0, 2.0]]
    """
    # No slices that keep everything: their backward copies whole gradients.
    right = right if right.shape[0] == left.shape[1] else right[: left.shape[1]]
    size = (left.shape[0], right.shape[1])
    room = None if scratch is None else scratch[: math.prod(size)].view(size)
    rows = torch.mm(left, right, out=room) if shift is None else torch.addmm(shift, left, right, out=room)
    numel = math.prod(shape)
    weight = (rows if numel == math.prod(size) else rows.flatten()[:numel]).view(tuple(shape))
    if channel_scale is not None:
        weight.view(shape[0], -1).mul_(channel_scale.unsqueeze(1))
    return weight


@recorded
def separable(run: Tensor, kernels: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight of a separable convolution: `sum(run[o, i, k] * kernels[k] for k in range(len(kernels)))`.

    Args:
        run: an entry for each output channel, input channel and kernel, in this order; any shape.
        kernels: the spatial kernels, of shape `(count, positions)`.
        shape: the weight's shape, `(out, in, *kernel)`.

    Returns:
        A contiguous tensor of `shape`.

    Example:
        >>> run, kernels = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0, -1.0]])
        >>> separable(run, kernels, (1, 2, 3)).tolist()
        [[[1.0, 0.0, -1.0], [2.0, 0.0, -2.0]]]
    """
    return (run.reshape(-1, kernels.shape[0]) @ kernels).view(tuple(shape))


class Spread:
    """Standard deviation of `(left @ right).flatten()[:numel]` for many `left`, without building any product.

    The sum of all entries is `(1 @ left) @ (right @ 1)`, and that of their squares the inner product of the two Gram
    matrices; what is cut off the last row is taken away again.

    Args:
        right: shape `(rank, cols)`.

    Example:
        >>> left, right = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0, 3.0]])
        >>> Spread(right)(left, 4), torch.tensor([1.0, 2.0, 3.0, 2.0]).std().item()
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
        rank, kept = left.shape[1], numel - (left.shape[0] - 1) * self.right.shape[1]
        cut = left[-1] @ self.right[:rank, kept:]
        total = left.sum(0) @ self.sums[:rank] - cut.sum()
        squares = ((left.T @ left) * self.gram[:rank, :rank]).sum() - cut.square().sum()
        return math.sqrt(max((squares - total * total / numel).item() / (numel - 1), 0.0))


def standard_normal(*shape: int, seed: torch.Generator | None = None) -> Tensor:
    """A random factor of mean zero and variance one.

    Args:
        shape: of the factor.
        seed: source of randomness on the CPU; torch's global one where left out.

    Returns:
        A float32 tensor of `shape`, on the CPU: drawn there whatever the model's device, so that a seed gives the same
        numbers everywhere.
    """
    return torch.randn(shape, generator=seed, dtype=torch.float32, device="cpu")


class PrincipalRows:
    """The rows that approximate many matrices best, each by combinations of them: a truncated SVD of all stacked.

    The stack is never built: its right singular vectors are the eigenvectors of the sum of Gram matrices.

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
        # A rank that the matrices don't use starts small on the right, so that its left can learn.
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


def nearest_pairs(weight: Tensor, kernels: Tensor) -> Tensor:
    """The run from which `separable` with orthogonal kernels of mean square one makes what is nearest to a weight.

    Args:
        weight: shape `(out, in, *kernel)`.
        kernels: shape `(count, positions)`.

    Returns:
        Shape `(out, in, count)`.
    """
    return weight.flatten(2) @ kernels.T.to(weight.dtype) / kernels.shape[1]
