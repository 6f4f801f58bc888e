"""The rows of `left` that come nearest to a weight, given `right`: least squares in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.smh.arithmetic import rows_for
from fxhash.smh.weight_target import WeightTarget, solve_right

# Where rows of `W` begin amid output channels there is no closed form; so many steps come near to it.
_STEPS_OF_LEFT = 30


class FactoredWeight:
    """A weight, and the rows of `left` that stand for it: `values ~ (left @ right[:rank]).flatten()[:numel]`.

    Args:
        target: what to come near to.
        cols: columns of `W`.
        rank: how many rows of `right` each row of `left` uses.
        more_rows: how many of the first rows use one more.

    Attributes:
        left: shape `(rows, rank)`, or `(rows, rank + 1)` with zeros if there are further rows.
    """

    def __init__(self, target: WeightTarget, cols: int, rank: int, more_rows: int = 0) -> None:
        self.target = target
        self.cols = cols
        rows = rows_for(target.values.numel(), cols)
        self.left = target.values.new_zeros(rows, rank + bool(more_rows))
        self._used = torch.ones_like(self.left, dtype=torch.bool)
        if more_rows:
            self._used[more_rows:, rank] = False

    def of_rows(self, rows: Tensor) -> Tensor:
        """The weight, of shape `(out, length)`, that rows of `W` hold, of shape `(rows, cols)`."""
        values = self.target.values
        return rows.flatten()[: values.numel()].view_as(values)

    def in_rows(self, values: Tensor) -> Tensor:
        """The rows of `W` that hold such a weight, with zeros after the last entry."""
        return F.pad(values.flatten(), (0, self.left.shape[0] * self.cols - values.numel())).view(-1, self.cols)

    def of_right(self, right: Tensor) -> Tensor:
        """`left @ right` as a weight."""
        return self.of_rows(self.left @ right[: self.left.shape[1]])

    def to_right(self, weighed: Tensor) -> Tensor:
        """The gradient of `right` for one of the weight: `left^T @ rows`, shape `(rank, cols)`."""
        return self.left.T @ self.in_rows(weighed)

    def error(self, right: Tensor) -> Tensor:
        """What is missing of the weight; shape `(out, length)`."""
        return self.target.values - self.of_right(right)

    def loss(self, right: Tensor) -> float:
        """The loss with the present factors."""
        return self.target.loss(self.error(right))

    def solve_left_(self, right: Tensor) -> None:
        """Set `left` to what has the least loss with `right`."""
        right = right[: self.left.shape[1]]
        length = self.target.values.shape[1]
        if not self.target.importance:
            self.left.zero_()
        elif length % self.cols == 0:
            self._solve_channels_(right, length // self.cols)
        elif self.cols % length == 0:
            self._solve_rows_(right, self.cols // length)
        else:
            self._descend_(right)

    def _solve_channels_(self, right: Tensor, segments: int) -> None:
        """Each output channel is some rows of `W`."""
        basis = torch.block_diag(*[right] * segments)
        weighed = self.target.weighed(basis)
        normal, wanted = weighed @ basis.T, self.target.values @ weighed.T
        left, used = self.left.view(len(wanted), -1), self._used.view(len(wanted), -1)
        for channels, columns in _alike(used):
            solved = solve_right(wanted[channels][:, columns], normal[columns][:, columns])
            left[channels.unsqueeze(1), columns] = solved

    def _solve_rows_(self, right: Tensor, channels: int) -> None:
        """Each row of `W` is some output channels."""
        length = self.target.values.shape[1]
        parts = right.reshape(-1, length)
        weighed = self.target.weighed(parts).view(-1, channels, length)
        of_channels = torch.einsum("rcn,qcn->crq", weighed, parts.view(-1, channels, length))
        wanted = self.in_rows(self.target.weighed(self.target.values)) @ right.T
        full, rest = divmod(len(self.target.values), channels)
        for first, last, normal in (
            (0, full, of_channels.sum(0)),
            (full, full + bool(rest), of_channels[:rest].sum(0)),
        ):
            for rows, columns in _alike(self._used[first:last]):
                rows = rows + first
                solved = solve_right(wanted[rows][:, columns], normal[columns][:, columns])
                self.left[rows.unsqueeze(1), columns] = solved

    def _descend_(self, right: Tensor) -> None:
        """Rows of `W` begin amid output channels."""

        def apply(left: Tensor) -> Tensor:
            weighed = self.target.weighed(self.of_rows(left @ right))
            return (self.in_rows(weighed) @ right.T) * self._used

        gradient = (self.in_rows(self.target.weighed(self.error(right))) @ right.T) * self._used
        self.left += conjugate_gradients(apply, gradient, _STEPS_OF_LEFT)


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    wanted: Tensor,
    steps: int,
    precondition: Callable[[Tensor], Tensor] = lambda residual: residual,
) -> Tensor:
    """`x` with `apply(x)` near to `wanted`: each step lowers `x . apply(x) - 2 x . wanted`, which is zero at first.

    Args:
        apply: a linear function, symmetric and without negative eigenvalues.
        wanted: any shape.
        steps: how many at most.
        precondition: an inverse of `apply`, roughly, symmetric and positive.

    Example:
        >>> conjugate_gradients(lambda x: 2 * x, torch.tensor([2.0, 4.0]), steps=1)
        tensor([1., 2.])
    """
    x, residual = torch.zeros_like(wanted), wanted
    direction = prepared = precondition(residual)
    size = first_size = (residual * prepared).sum()
    for _ in range(steps):
        applied = apply(direction)
        curvature = (direction * applied).sum()
        if not curvature > 0 or not size > 1e-14 * first_size:
            break
        length = size / curvature
        x = x + length * direction
        residual = residual - length * applied
        prepared = precondition(residual)
        size, last_size = (residual * prepared).sum(), size
        direction = prepared + (size / last_size) * direction
    return x


def _alike(used: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of a mask that are the same, by their indices, and the indices of what they use."""
    if not len(used):
        return
    patterns, which = torch.unique(used, dim=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        yield (which == index).nonzero().squeeze(1), pattern.nonzero().squeeze(1)
