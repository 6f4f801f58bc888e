"""The modules of a deployed model: one holds the factors, the other the memory that weights are generated into."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from fxhash.deployment import DeploymentPlan
from fxhash.parts import free_name
from fxhash.plan import CompressionPlan


class DeployedFactors(nn.Module):
    """Factors of a deployed model: `right`, and the scaled rows of `left` of each use of a parameter.

    Called without arguments it returns `right`, called with a key the tensor that was stored under it.

    Attributes:
        compression: the plan of the transformed model.
        captured: how the model became a graph, for the summary.
        plan: how each weight comes about; set once the whole model is lowered.
    """

    plan: DeploymentPlan

    def __init__(self, compression: CompressionPlan, captured: str, right: Tensor) -> None:
        super().__init__()
        self.compression = compression
        self.captured = captured
        self.right = nn.Parameter(right, requires_grad=False)
        self._attributes: dict[str, str] = {}

    def store(self, key: str, tensor: Tensor) -> str:
        """Keep a tensor; returns the key that gives it back, which is `key` unless that is taken."""
        unique, count = key, 1
        while unique in self._attributes:
            count += 1
            unique = f"{key}#{count}"
        self._attributes[unique] = attribute = free_name(self, re.sub(r"\W+", "_", unique))
        self.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
        return unique

    def forward(self, key: str | None = None) -> Tensor:
        """`right`, or the tensor under `key`."""
        return self.right if key is None else getattr(self, self._attributes[key])


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
            or torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None
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


def find_deployed(module: nn.Module) -> DeployedFactors | None:
    """The factors of a deployed model; None if the model is not deployed."""
    return next((child for child in module.modules() if isinstance(child, DeployedFactors)), None)
