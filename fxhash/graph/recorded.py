"""Functions that `torch.fx` records as one node, as it does with torch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import handle_torch_function, has_torch_function

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_BODY = "_fxhash_body"


def is_compiled_or_traced() -> bool:
    """Whether a compiler, an exporter or `torch.jit.trace` follows the running code."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def recorded(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let `torch.fx` record a call of `function` as one node.

    Unpickling a graph module traces its code; without this, it would trace into the function.
    """

    @wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if has_torch_function(args):
            return handle_torch_function(run, args, *args, **kwargs)
        return function(*args, **kwargs)

    vars(run)[_BODY] = function
    return run


def body_of(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """What a recorded function runs, for a function mode that is to see what is called there; None for any other."""
    body: Callable[..., Any] | None = getattr(function, _BODY, None)
    return body
