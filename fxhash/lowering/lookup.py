"""Rows of an embedding that are computed from its factors when they are looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.graph.recorded import computing, is_compiled_or_traced, is_plain_tensor, recorded
from fxhash.lowering.functional import holds, is_exporting
from fxhash.smh.factor_bits import FactorBits, dequantize
from fxhash.smh.precision import without_autocast

# Elements of what a lookup computes at a time, and up to how many entries in a row of `W` it computes the whole row.
_LARGEST_INTERMEDIATE = 2**20
_FEW_PER_ROW = 8


@computing
@recorded
@without_autocast
def factored_embedding(
    indices: Tensor,
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    steps: Tensor | None = None,
    group: int | None = None,
    padding_idx: int | None = None,
) -> Tensor:
    """`F.embedding(indices, weight, padding_idx)` for the table of shape `shape` that `left @ right` stands for.

    Only the rows that are looked up are generated, a bounded number at a time.

    Args:
        indices: integers of any shape.
        left: the table's own rows of the left factor.
        right: the right factor.
        shape: the table's, `(count, size)`, which must be row-aligned.
        steps: of the integers in `left`, shape `(rows, groups)`; None where it is in floating point.
        group: how many integers of a row share a step.
        padding_idx: the index whose lookups pass no gradient on, from 0 to `count - 1`; it matters in training alone.

    Returns:
        Shape `(*indices.shape, size)`.

    Raises:
        IndexError: for an index out of range, on a CPU.
    """
    looked_up = _looked_up(indices, left, right, shape, steps, group)
    if padding_idx is None:
        return looked_up
    return torch.where((indices == padding_idx).unsqueeze(-1), looked_up.detach(), looked_up)


def _looked_up(
    indices: Tensor, left: Tensor, right: Tensor, shape: Sequence[int], steps: Tensor | None, group: int | None
) -> Tensor:
    count, size = shape
    rank, cols = left.shape[1], right.shape[1]
    right = right[:rank]
    if cols <= size:
        return (_rows_at(indices, left.view(count, -1, rank), steps, group) @ right).flatten(-2)
    per_row = cols // size
    _refuse_beyond(count, per_row, indices)
    look_up, width = _way(right, per_row, is_trained=left.requires_grad or right.requires_grad)
    flat, most = indices.reshape(-1), max(_LARGEST_INTERMEDIATE // width, 1)
    pieces = [
        look_up(_rows_at(piece // per_row, left, steps, group), piece % per_row, right, size)
        for piece in (flat.split(most) if holds(flat.shape[0] > most) else (flat,))
    ]
    looked_up = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return looked_up.view(*indices.shape, size)


@computing
@recorded
@without_autocast
def factored_embeddings(
    right: Tensor, indices: Sequence[Tensor], lefts: Sequence[Tensor], shapes: Sequence[Sequence[int]]
) -> tuple[Tensor, ...]:
    """`factored_embedding` for several tables of as many columns: a few calls for all of them, where none is trained.

    Args:
        right: the right factor.
        indices: those of each table, integers of any shape.
        lefts: each table's own rows of the left factor, in floating point.
        shapes: each table's shape; a row of `W` must hold several of its entries.

    Returns:
        What `factored_embedding` gives for each.
    """
    size = shapes[0][1]
    counts, ranks = tuple(each.numel() for each in indices), tuple(left.shape[1] for left in lefts)
    entries = sum(count * rank for count, rank in zip(counts, ranks, strict=True))
    if not _joins(right, indices) or entries > _LARGEST_INTERMEDIATE:
        return tuple(
            factored_embedding(each, left, right, shape)
            for each, left, shape in zip(indices, lefts, shapes, strict=True)
        )
    per_row = right.shape[1] // size
    for each, (count, _) in zip(indices, shapes, strict=True):
        _refuse_beyond(count, per_row, each)
    together = torch.cat([each.reshape(-1) for each in indices])
    rows, blocks = together // per_row, (together % per_row).unsqueeze(1)
    factors, segments = [], []
    for left, of_rows, of_blocks in zip(lefts, rows.split(counts), blocks.split(counts), strict=True):
        factors.append(F.embedding(of_rows, left).view(-1))
        segments.append((_starts(left.shape[1], per_row, right.device) + of_blocks).view(-1))
    sums = F.embedding_bag(
        torch.cat(segments),
        right.view(-1, size),
        _bags(counts, ranks, right.device),
        per_sample_weights=torch.cat(factors),
        mode="sum",
    )
    return tuple(each.view(*index.shape, size) for each, index in zip(sums.split(counts), indices, strict=True))


def _refuse_beyond(count: int, per_row: int, indices: Tensor) -> None:
    """Refuse what is beyond the table but within its last row of `W`: any other index fails where it is looked up."""
    if count % per_row == 0 or is_compiled_or_traced() or not _has_values(indices):
        return
    if indices.numel() and int(indices.max()) >= count:
        raise IndexError(f"index {int(indices.max())} is out of range: the table has {count} rows")


def _has_values(indices: Tensor) -> bool:
    """Whether the values of a tensor can be read without waiting for another device."""
    return is_plain_tensor(indices) and indices.device.type == "cpu"


def _joins(right: Tensor, indices: Sequence[Tensor]) -> bool:
    """Whether lookups are joined: not for compilers and exporters, nor in training."""
    return (
        not is_compiled_or_traced()
        and type(right) in (Tensor, torch.nn.Parameter)
        and not (right.requires_grad and torch.is_grad_enabled())
        and all(type(each) is Tensor for each in indices)
    )


@lru_cache(maxsize=64)
def _starts(rank: int, per_row: int, device: torch.device) -> Tensor:
    """The first segment of each row of `right`."""
    # They outlive the call: no tensors of inference mode, which can't be used outside of it.
    with torch.inference_mode(False):
        return torch.arange(0, rank * per_row, per_row, device=device)


@lru_cache(maxsize=64)
def _bags(counts: tuple[int, ...], ranks: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the bag of each index begins: those of a table have as many entries as its rank."""
    with torch.inference_mode(False):
        sizes = [torch.full((count,), rank, device=device) for count, rank in zip(counts, ranks, strict=True)]
        each = torch.cat(sizes)
        return each.cumsum(0) - each


_LookUp = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _way(right: Tensor, per_row: int, is_trained: bool) -> tuple[_LookUp, int]:
    """How to compute entries from rows of `left` and their places in rows of `W`; numbers that this takes for each."""
    rank, cols = right.shape
    # The sum over a bag never holds what it adds up, but its backward pass is slow, and no exporter knows it.
    if not (is_exporting() or (is_trained and torch.is_grad_enabled())):
        return _by_bags, rank
    return (_by_whole_rows, cols) if per_row <= _FEW_PER_ROW else (_by_blocks, rank * cols // per_row)


def _by_bags(rows: Tensor, block: Tensor, right: Tensor, size: int) -> Tensor:
    """Sums of segments of `right`, weighted by the entries of `left`."""
    rank, cols = right.shape
    starts = torch.arange(0, rank * cols // size, cols // size, device=block.device)
    return F.embedding_bag(starts + block.unsqueeze(1), right.view(-1, size), per_sample_weights=rows, mode="sum")


def _by_whole_rows(rows: Tensor, block: Tensor, right: Tensor, size: int) -> Tensor:
    """One product for whole rows of `W`, of which one entry each is taken."""
    generated = (rows @ right).view(-1, size)
    first = torch.arange(0, generated.shape[0], right.shape[1] // size, device=block.device)
    return F.embedding(first + block, generated)


def _by_blocks(rows: Tensor, block: Tensor, right: Tensor, size: int) -> Tensor:
    """A product for each entry, with its block of `right`."""
    rank, cols = right.shape
    blocks = right.view(rank, cols // size, size).transpose(0, 1).reshape(cols // size, -1)
    chosen = F.embedding(block, blocks).view(block.shape[0], rank, size)
    return torch.bmm(rows.unsqueeze(1), chosen).squeeze(1)


def _rows_at(indices: Tensor, left: Tensor, steps: Tensor | None, group: int | None) -> Tensor:
    """Rows of `left`, or blocks of them, of shape `(count, ..., rank)`, in floating point."""
    count, rank = left.shape[0], left.shape[-1]
    rows = F.embedding(indices, left.view(count, -1))
    if steps is None:
        return rows.view(*indices.shape, *left.shape[1:])
    of_rows = F.embedding(indices, steps.reshape(count, -1)).view(-1, steps.shape[-1])
    return dequantize(rows.view(-1, rank), of_rows, FactorBits(8, group)).view(*indices.shape, *left.shape[1:])
