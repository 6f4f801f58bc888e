"""Functions that `torch.fx.wrap` names: calls with a value of the graph are recorded, not followed.

Each is replaced where its module has it, as `torch.fx` does. The replacement asks for the thread: in all others it is
the function itself.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch.fx._symbolic_trace as symbolic_trace
from torch import fx
from torch.utils._pytree import tree_leaves

_MISSING = object()


@contextmanager
def recording_wrapped_functions() -> Iterator[None]:
    """Record calls of these functions in this thread; no two threads may be in such a block at a time."""
    thread, replaced = get_ident(), []
    try:
        for (_, name), variables in list(symbolic_trace._wrapped_fns_to_patch.items()):
            before = variables.get(name, _MISSING)
            function = getattr(builtins, name, None) if before is _MISSING else before
            if callable(function):
                variables[name] = _recording(function, thread)
                replaced.append((variables, name, before))
        yield
    finally:
        for variables, name, before in replaced:
            if before is _MISSING:
                del variables[name]
            else:
                variables[name] = before


def _recording(function: Callable[..., Any], thread: int) -> Callable[..., Any]:
    @functools.wraps(function)
    def record_or_call(*args: Any, **kwargs: Any) -> Any:
        if get_ident() == thread:
            proxy = next((each for each in tree_leaves((args, kwargs)) if isinstance(each, fx.Proxy)), None)
            if proxy is not None:
                return proxy.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return record_or_call
