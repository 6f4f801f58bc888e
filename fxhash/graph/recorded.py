"""Functions that `torch.fx` records as one node, as it does with torch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch.overrides import handle_torch_function, has_torch_function

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


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

    return run
