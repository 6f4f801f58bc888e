"""The rows of `left` that come nearest to a weight, given `right`: least squares in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.smh.arithmetic import rows_for
from fxhash.smh.weight_target import WeightTarget, solve_right

# Where rows of `W` begin amid output channels there is no closed form; so many steps come near to it.
_STEPS_OF_LEFT = 30


class System(NamedTuple):
    """What some rows of `left` are the solution of: `left[first:last].view(any, size) @ normal = wanted`.

    Attributes:
        first: row of `left`.
        last: the row after them.
        normal: shape `(size, size)`, where the size is the rank times the rows of `W` that an output channel takes, if
            these are several.
        wanted: shape `(any, size)`; what they remove of the loss is `tr(wanted @ normal^-1 @ wanted^T)`.
    """

    first: int
    last: int
    normal: Tensor
    wanted: Tensor


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
        if not self.target.importance:
            self.left.zero_()
        elif self.target.gram is None or self._is_aligned():
            for first, last, normal, wanted in self.systems(right):
                left, used = (each[first:last].view(len(wanted), -1) for each in (self.left, self._used))
                for alike, columns in _alike(used):
                    solved = solve_right(wanted[alike][:, columns], normal[columns][:, columns])
                    left[alike.unsqueeze(1), columns] = solved
        else:
            self._descend_(right)

    def systems(self, right: Tensor) -> list[System]:
        """The least squares that `left` is the solution of, where it may use all rows of `right`.

        Where rows of `W` begin amid output channels there are none so small: each entry then counts the same.
        """
        if self.target.gram is None or not self._is_aligned():
            return self._of_rows_alone(right)
        return self._of_channels(right) if self.target.values.shape[1] >= self.cols else self._of_rows(right)

    @property
    def segments(self) -> int:
        """How many rows of `W` are solved for together: those of an output channel whose inputs were seen."""
        is_plain = self.target.gram is None or not self._is_aligned()
        return 1 if is_plain else max(self.target.values.shape[1] // self.cols, 1)

    def _is_aligned(self) -> bool:
        length = self.target.values.shape[1]
        return length % self.cols == 0 or self.cols % length == 0

    def _of_rows_alone(self, right: Tensor) -> list[System]:
        """Each row of `W` counts by itself: no system is larger than the rank, however long an output channel is."""
        full, rest = divmod(self.target.values.numel(), self.cols)
        importance = self.target.mean_importance()
        wanted = (self.in_rows(self.target.values) @ right.T) * importance
        normal, normal_of_last = (part @ part.T * importance for part in (right, right[:, :rest]))
        systems = [System(0, full, normal, wanted[:full]), System(full, full + 1, normal_of_last, wanted[full:])]
        return systems[not full : 1 + bool(rest)]

    def _of_channels(self, right: Tensor) -> list[System]:
        """Each output channel is some rows of `W`."""
        basis = torch.block_diag(*[right] * self.segments)
        weighed = self.target.weighed(basis)
        return [System(0, len(self.left), weighed @ basis.T, self.target.values @ weighed.T)]

    def _of_rows(self, right: Tensor) -> list[System]:
        """Each row of `W` is some output channels."""
        length = self.target.values.shape[1]
        parts = right.view(len(right), -1, length)
        weighed = self.target.weighed(parts.flatten(0, 1)).view_as(parts)
        of_channels = torch.einsum("rcn,qcn->crq", weighed, parts)
        wanted = self.in_rows(self.target.weighed(self.target.values)) @ right.T
        full, rest = divmod(len(self.target.values), parts.shape[1])
        whole, last = of_channels.sum(0), of_channels[:rest].sum(0)
        systems = [System(0, full, whole, wanted[:full]), System(full, full + 1, last, wanted[full:])]
        return systems[not full : 1 + bool(rest)]

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
