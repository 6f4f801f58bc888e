"""Functions of Python and torch that give numbers, and that `torch.fx` can't record itself."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import torch

from fxhash.graph.recorded import recorded


@recorded
def to_int(value: Any) -> int:
    """As `int(value)`."""
    return int(value)


@recorded
def to_float(value: Any) -> float:
    """As `float(value)`."""
    return float(value)


@recorded
def rounded(value: Any, *digits: Any) -> Any:
    """As `round(value, *digits)`."""
    return round(value, *digits)


@recorded
def length(value: Any) -> int:
    """As `len(value)`."""
    return len(value)


@recorded
def smallest(*values: Any) -> Any:
    """As `min(*values)`."""
    return min(*values)


@recorded
def largest(*values: Any) -> Any:
    """As `max(*values)`."""
    return max(*values)


@recorded
def limits_of_floats(dtype: torch.dtype) -> torch.finfo:
    """As `torch.finfo(dtype)`."""
    return torch.finfo(dtype)


@recorded
def limits_of_integers(dtype: torch.dtype) -> torch.iinfo:
    """As `torch.iinfo(dtype)`."""
    return torch.iinfo(dtype)


# What stands in a graph for a call of each.
OF_PYTHON: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "int": (builtins.int, to_int),
    "float": (builtins.float, to_float),
    "round": (builtins.round, rounded),
    "len": (builtins.len, length),
    "min": (builtins.min, smallest),
    "max": (builtins.max, largest),
}
OF_TORCH: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "finfo": (torch.finfo, limits_of_floats),
    "iinfo": (torch.iinfo, limits_of_integers),
}
# Those whose result is certain to be something.
NEVER_NONE = frozenset([to_int, to_float, length, limits_of_floats, limits_of_integers])
