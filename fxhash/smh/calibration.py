"""What layers read, as far as the squared error of their outputs depends on it: Gram matrices of inputs, streamed.

A linear layer whose weight is off by `E` is off by `E x` on an input `x`, on average by `tr(E G E^T)` in squares, where
`G = E[x x^T]` is the Gram matrix of its inputs. A convolution is a linear layer of its unfolded inputs. Nothing here
knows of `torch.fx` or `torch.nn`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

# Inputs of a convolution are unfolded in pieces of so many entries at most: 64 MB.
_PIECE = 2**24


@dataclass(frozen=True)
class InputMoments:
    """Sums over the inputs that a layer was seen to read.

    Attributes:
        products: sums of `x x^T`; shape `(blocks, size, size)`, where `blocks * size` is the length of an input. More
            than one block leaves out the products between blocks, where all of them would take too much memory.
        sums: sums of `x`; shape `(blocks * size,)`.
        count: how many inputs.
    """

    products: Tensor
    sums: Tensor
    count: int

    def __add__(self, other: InputMoments) -> InputMoments:
        return InputMoments(self.products + other.products, self.sums + other.sums, self.count + other.count)

    @property
    def gram(self) -> Tensor:
        """`E[x x^T]`; shape `(blocks, size, size)`."""
        return self.products / self.count


def moments(inputs: Iterable[Tensor], blocks: int = 1) -> InputMoments:
    """The moments of some inputs.

    Args:
        inputs: pieces of shape `(any, length)`, at least one; sums are in float32, or in float64 if they are.
        blocks: how many blocks of the Gram matrix count; a divisor of the length.

    Example:
        >>> moments([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])]).gram.tolist()
        [[[5.0, 1.0], [1.0, 2.0]]]
    """
    total = None
    for piece in inputs:
        piece = piece.detach().to(torch.promote_types(piece.dtype, torch.float32))
        split = piece.view(len(piece), blocks, -1).transpose(0, 1)
        found = InputMoments(split.transpose(1, 2) @ split, piece.sum(0), len(piece))
        total = found if total is None else total + found
    assert total is not None
    return total


def unfolded(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Iterator[Tensor]:
    """What a convolution multiplies its flattened weights by, in pieces of bounded size.

    Args:
        x: shape `(batch, channels, *space)`.
        kernel: size of the kernel in each dimension of space.
        stride: as of the convolution, as are the others, one number a dimension.
        padding: zeros to add on both sides.
        dilation: distance of the kernel's positions.
        groups: each group of channels is an input of its own.

    Yields:
        Shape `(any, channels / groups * positions)`, with the order of `weight.flatten(1)`.

    Example:
        >>> [piece.tolist() for piece in unfolded(torch.tensor([[[1.0, 2.0, 3.0]]]), [2], [1], [0], [1])]
        [[[1.0, 2.0], [2.0, 3.0]]]
    """
    pads = [amount for each in reversed(padding) for amount in (each, each)]
    entries = x[:1].numel() * math.prod(kernel)
    for part in x.split(max(_PIECE // max(entries, 1), 1)):
        windows = F.pad(part, pads)
        for dimension, (size, step, distance) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
            windows = windows.unfold(dimension, distance * (size - 1) + 1, step)[..., ::distance]
        space = len(kernel)
        windows = windows.unflatten(1, (groups, -1))
        order = (0, 1, *range(3, 3 + space), 2, *range(3 + space, 3 + 2 * space))
        yield windows.permute(order).reshape(-1, part.shape[1] // groups * math.prod(kernel))


@dataclass(frozen=True)
class _Readers:
    """Layers that have read the same inputs so far, and their moments."""

    names: frozenset[str]
    moments: InputMoments


class MomentStore:
    """The moments of the inputs of many layers. Layers that have read the same inputs throughout share theirs.

    Attributes:
        readers: a partition of the layers that were seen.
        order: their names, in the order in which they were seen first.
    """

    def __init__(self) -> None:
        self.readers: list[_Readers] = []
        self.order: list[str] = []

    def add(self, names: Iterable[str], read: InputMoments) -> None:
        """Count in what layers of these names have read.

        Example:
            >>> store, ones = MomentStore(), moments([torch.ones(2, 3)])
            >>> store.add(["q", "k"], ones)
            >>> store.add(["q"], ones)
            >>> store["q"].count, store["k"].count
            (4, 2)
        """
        new = set(names)
        self.order += sorted(new - set(self.order))
        kept = []
        for group in self.readers:
            among, others = group.names & new, group.names - new
            if among:
                kept.append(_Readers(among, group.moments + read))
            if others:
                kept.append(replace(group, names=others))
            new -= among
        self.readers = kept + ([_Readers(frozenset(new), read)] if new else [])

    def __contains__(self, name: str) -> bool:
        return any(name in group.names for group in self.readers)

    def __getitem__(self, name: str) -> InputMoments:
        """The moments of one layer's inputs."""
        return next(group.moments for group in self.readers if name in group.names)


def block_sizes(lengths: Iterable[int], most_entries: int) -> dict[int, int]:
    """The size of the blocks of the Gram matrix for each length of input, the largest with which all can be held.

    Args:
        lengths: of the inputs of all layers, with repetitions.
        most_entries: of all Gram matrices together.

    Example:
        >>> block_sizes([6, 6, 2], most_entries=100), block_sizes([6, 6, 2], most_entries=40)
        ({6: 6, 2: 2}, {6: 3, 2: 2})
    """
    counts = Counter(lengths)
    sizes = {length: length for length in counts}
    while sum(counts[length] * length * size for length, size in sizes.items()) > most_entries:
        largest = max(sizes, key=lambda length: (sizes[length], length))
        size = sizes[largest]
        if size == 1:
            break
        sizes[largest] //= next(factor for factor in range(2, size + 1) if size % factor == 0)
    return sizes
