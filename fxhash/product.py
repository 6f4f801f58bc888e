"""The arithmetic of Structured Multi-Hashing: pure functions on tensors.

All hashed parameters, flattened and laid end to end, fill one global matrix `W = left @ right` in row-major
order (Eban et al., CVPR 2020, arXiv 1911.11177). A parameter is a run of `numel` elements that starts at element
`offset`; it may begin and end in the middle of a row. Nothing here knows of `torch.fx` or `torch.nn`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split_product(left: Tensor, right: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Every run of `W = left @ right` at once: one product and one split.

    One `split` matters in training: its backward is a single concatenation, where a slice per parameter would
    allocate a zero tensor of the size of `W` for each of them.

    Args:
        left: factor of shape `(rows, rank)`.
        right: factor of shape `(rank, cols)`.
        sizes: number of elements of each run, in order of their offsets; at most `rows * cols` together.

    Returns:
        One flat tensor a size.

    Example:
        >>> left, right = torch.ones(2, 1), torch.tensor([[1.0, 2.0, 3.0]])
        >>> [run.tolist() for run in split_product(left, right, [4, 1])]
        [[1.0, 2.0, 3.0, 1.0], [2.0]]
    """
    unused = left.shape[0] * right.shape[1] - sum(sizes)
    return (left @ right).flatten().split([*sizes, unused])[: len(sizes)]


def generate_run(left: Tensor, right: Tensor, offset: int, numel: int) -> Tensor:
    """One run of `W = left @ right`, computed from the rows of `left` that it touches and no others.

    Args:
        left: factor of shape `(rows, rank)`.
        right: factor of shape `(rank, cols)`.
        offset: index of the run's first element in `W.flatten()`.
        numel: number of elements of the run.

    Returns:
        A flat tensor of `numel` elements, equal to `(left @ right).flatten()[offset : offset + numel]`.

    Example:
        >>> generate_run(torch.ones(2, 1), torch.tensor([[1.0, 2.0, 3.0]]), offset=2, numel=2).tolist()
        [3.0, 1.0]
    """
    first_row, row_end = rows_of_run(offset, numel, right.shape[1])
    rows = left[first_row:row_end] @ right
    start = offset - first_row * right.shape[1]
    return rows.flatten()[start : start + numel]


def rows_of_run(offset: int, numel: int, cols: int) -> tuple[int, int]:
    """The half-open range of rows of `W` that a run of elements touches.

    Example:
        >>> rows_of_run(offset=2, numel=2, cols=3)
        (0, 2)
    """
    return offset // cols, -(-(offset + numel) // cols)


def standard_normal_factors(
    rows: int, cols: int, rank: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random factors whose product has entries of mean zero and variance one.

    An entry of `W` is a sum of `rank` products of two independent factor entries, so factor entries of standard
    deviation `rank ** -0.25` give it variance one.

    Args:
        rows: rows of `left` and of `W`.
        cols: columns of `right` and of `W`.
        rank: columns of `left`, rows of `right`.
        generator: source of randomness on the CPU; torch's global one where left out.

    Returns:
        `left` of shape `(rows, rank)` and `right` of shape `(rank, cols)`, float32, on the CPU: drawn there
        whatever the model's device, so that a seed gives the same numbers everywhere.
    """
    std = rank**-0.25
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float32, device="cpu") * std
    right = torch.randn(rank, cols, generator=generator, dtype=torch.float32, device="cpu") * std
    return left, right
