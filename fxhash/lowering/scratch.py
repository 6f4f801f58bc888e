"""Scratch memory that weights are generated into, lent to one call at a time."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from fxhash.graph.recorded import is_compiled_or_traced

Slots = tuple[Tensor | None, ...]


class ScratchSlots(nn.Module):
    """Memory that weights are generated into, lent to one call at a time.

    A call of the deployed model borrows a set of slots and gives it back at its end, for the next call to find it warm.
    Calls at the same time (of several threads, or of a model inside of itself) have a set each, so there come to be as
    many sets as there are such calls. They are not part of the state dict, and copies and pickles start without.

    A slot is None, so that each weight gets memory of its own, where sharing would be wrong or done better elsewhere:
    while gradients are recorded, which need the weights later; on accelerators, whose allocator reuses memory in the
    order of their streams; and under a compiler or tracer, which plans memory itself.

    Args:
        sizes: number of elements of each slot.
    """

    # For torch.fx: a call must stay although nobody reads its result.
    _is_impure = True

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        # Threads append and pop without a lock: both are atomic.
        self._idle: deque[Slots] = deque()

    def forward(self, like: Tensor, borrowed: Slots | None = None) -> Slots:
        """Borrow a set of slots of the type of `like`, or give `borrowed` back."""
        if borrowed is not None:
            if borrowed[0] is not None:
                self._idle.append(borrowed)
            return ()
        if (
            torch.is_grad_enabled()
            or is_compiled_or_traced()
            or like.device.type != "cpu"
            or type(like) is not nn.Parameter
        ):
            return (None,) * len(self.sizes)
        try:
            slots = self._idle.pop()
        except IndexError:
            slots = (None,)
        if slots[0] is not None and slots[0].dtype == like.dtype:
            return slots
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            return tuple(torch.empty(size, dtype=like.dtype) for size in self.sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": deque()}

    def extra_repr(self) -> str:
        """Elements of each slot, for `repr`."""
        return f"sizes={self.sizes}"
