"""Operations on tensors that have values, while a model is traced: each would happen once instead of at every call."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxhash.capture.thread_mode import ThreadMode


class RefusingOperations(ThreadMode):
    """Refuses to draw random numbers, and to change in place what a model holds; in this thread alone.

    Args:
        held: the storages of all tensors that the model holds.
        refuse: is told what the forward does; raises.
    """

    def __init__(self, held: Collection[int], refuse: Callable[[str], NoReturn]) -> None:
        super().__init__()
        self._held = held
        self._refuse = refuse

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, unless a graph would forget it."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._refuse("draws random numbers outside of any traced operation")
        if func._schema.is_mutable:
            for tensor in tree_leaves((args, kwargs or {})):
                if isinstance(tensor, Tensor) and storage_of(tensor) in self._held:
                    self._refuse("changes a tensor that the model holds in place")
        return func(*args, **(kwargs or {}))


def storage_of(tensor: Tensor) -> int | None:
    """What tells the memory of a tensor from that of others; None where it has none of the usual kind."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None
