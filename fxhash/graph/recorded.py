"""Functions that `torch.fx` records as one node, as it does with torch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_BODY = "_fxhash_body"
_COMPUTES, _CALLS_BY_NAME = "fxhash_computes", "fxhash_calls_by_name"


def is_compiled_or_traced() -> bool:
    """Whether a compiler, an exporter or `torch.jit.trace` follows the running code."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def is_plain_tensor(value: Tensor) -> bool:
    """Whether a tensor is of no subclass, and no transform of `torch.func` stands around it."""
    return type(value) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(value)


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


def computing(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Mark a function of ours whose result shares no memory with what it is given."""
    vars(function)[_COMPUTES] = True
    return function


def is_computing(function: object) -> bool:
    """Whether a function is marked so."""
    return getattr(function, _COMPUTES, False) is True


def calling_by_name(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Mark a function of ours that calls another, whose qualified name it is given first."""
    vars(function)[_CALLS_BY_NAME] = True
    return function


def is_calling_by_name(function: object) -> bool:
    """Whether a function is marked so."""
    return getattr(function, _CALLS_BY_NAME, False) is True


def body_of(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """What a recorded function runs, for a function mode that is to see what is called there; None for any other."""
    body: Callable[..., Any] | None = getattr(function, _BODY, None)
    return body
