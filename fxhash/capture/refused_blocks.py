"""`with` blocks that a graph would forget: refused in the thread that traces, as ever in all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock, get_ident
from typing import Any

import torch

from fxhash.capture.untraceable import UntraceableError

_REASONS: dict[Any, str] = {
    torch.autocast: "its forward switches autocast on or off",
    torch.autograd.graph.saved_tensors_hooks: "its forward checkpoints, or saves tensors in its own way",
}

# How many traces each thread is in, by its identifier. `__enter__` of the blocks is ours while there is any, and the
# block's own is kept here meanwhile. All three change together, under the lock.
_lock = Lock()
_tracing: Counter[int] = Counter()
_own_enter: dict[Any, Callable[..., Any]] = {}


@contextmanager
def refusing_blocks() -> Iterator[None]:
    """Refuse autocast blocks, also those that switch autocast off, and blocks that checkpoint, in this thread.

    Entering one raises an `UntraceableError`. Other threads enter them as before.
    """
    thread = get_ident()
    with _lock:
        if not _tracing:
            for block in _REASONS:
                _own_enter[block] = vars(block)["__enter__"]
                block.__enter__ = _refusing_while_tracing(block, _own_enter[block])
        _tracing[thread] += 1
    try:
        yield
    finally:
        with _lock:
            _tracing[thread] -= 1
            if not _tracing[thread]:
                del _tracing[thread]
            if not _tracing:
                for block in _REASONS:
                    block.__enter__ = _own_enter.pop(block)


def _refusing_while_tracing(block: Any, enter: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(enter)
    def refuse_or_enter(*args: Any, **kwargs: Any) -> Any:
        if get_ident() in _tracing:
            raise UntraceableError(_REASONS[block])
        return enter(*args, **kwargs)

    return refuse_or_enter
