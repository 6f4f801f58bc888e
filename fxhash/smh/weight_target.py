"""The error that counts of one weight: that of its layer's outputs, by the Gram matrix of its inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Of the mean square of an input: what is added to each, so that inputs that calibration never saw count a little.
DAMPING = 1e-4


@dataclass(frozen=True)
class WeightTarget:
    """A weight to come near to, and how much its errors matter: `importance * tr(E G E^T) + constant`.

    Attributes:
        values: the weight; shape `(out, length)`.
        gram: of the inputs; shape `(blocks, size, size)` with `blocks * size` the length. None for the identity.
        importance: a factor of the loss.
        constant: the loss that stays, whatever comes near to `values`.
    """

    values: Tensor
    gram: Tensor | None = None
    importance: float = 1.0
    constant: float = 0.0

    def weighed(self, error: Tensor) -> Tensor:
        """`importance * E G`; half the gradient of the loss.

        Args:
            error: shape `(any, length)`.
        """
        if self.gram is None:
            return error * self.importance
        if len(self.gram) == 1:
            return error @ (self.gram[0] * self.importance)
        blocks = error.unflatten(1, (len(self.gram), -1)).transpose(0, 1)
        return (blocks @ (self.gram * self.importance)).transpose(0, 1).flatten(1)

    def loss(self, error: Tensor) -> float:
        """`importance * tr(E G E^T) + constant`."""
        return max((self.weighed(error) * error).sum(dtype=torch.float64).item(), 0.0) + self.constant

    def mean_importance(self) -> float:
        """How much the error of an entry matters, on the average of all."""
        if self.gram is None:
            return self.importance
        return self.importance * self.gram.diagonal(dim1=1, dim2=2).mean().item()

    def relative(self) -> WeightTarget:
        """The same with such importance that zeros would have a loss of the number of rows; none if it is zero."""
        energy = replace(self, importance=1.0).loss(self.values)
        return replace(self, importance=len(self.values) / energy if energy > 0 else 0.0)


def damped(gram: Tensor, damping: float = DAMPING) -> Tensor:
    """A Gram matrix with a part of its mean diagonal entry added to the diagonal.

    Args:
        gram: shape `(blocks, size, size)`.
        damping: which part.
    """
    mean = gram.diagonal(dim1=1, dim2=2).mean()
    return gram + torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) * (damping * mean)


def pointwise_target(target: WeightTarget, kernels: Tensor) -> WeightTarget:
    """What the pointwise half of a separable convolution has to come near to, given its kernels.

    The loss of the whole weight `P K` is, up to a constant, the loss of `P` about the one that is best without any
    limit of rank, by the Gram matrix of inputs that the kernels were applied to.

    Args:
        target: of a convolution; `length` is input channels times positions.
        kernels: shape `(count, positions)`.

    Returns:
        A target of shape `(out, in * count)`.
    """
    channels = target.values.shape[1] // kernels.shape[1]
    kernels = kernels.to(target.values.dtype)
    expand = torch.kron(torch.eye(channels, dtype=kernels.dtype, device=kernels.device), kernels)
    equal = replace(target, importance=1.0)
    weighed = equal.weighed(expand)
    gram = weighed @ expand.T
    best = solve_right(target.values @ weighed.T, gram)
    return WeightTarget(best, gram.unsqueeze(0), target.importance, target.loss(target.values - best @ expand))


def solve_right(product: Tensor, matrix: Tensor) -> Tensor:
    """`X` with `X @ matrix = product`, for a symmetric matrix that has no negative eigenvalues.

    Args:
        product: shape `(any, size)`.
        matrix: shape `(size, size)`; it may be singular.
    """
    return torch.cholesky_solve(product.T.double(), cholesky(matrix)).T.to(product.dtype)


def cholesky(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor, in float64, of a symmetric matrix that has no negative eigenvalues.

    Its own rounding error is added to the diagonal, so that it may be singular.
    """
    wide = matrix.double()
    ridge = wide.diagonal().mean().clamp(min=1e-300)
    for part in (1e-12, 1e-9, 1e-6):
        factor, failed = torch.linalg.cholesky_ex(
            wide + torch.eye(len(wide), dtype=wide.dtype, device=wide.device) * (part * ridge)
        )
        if not failed:
            break
    return factor
