"""The arguments of a call by name."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

# Functions that Python can't ask for their parameters: those of torch that are written in C++.
_CONVOLUTION = {"input": ..., "weight": ..., "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_BUILTIN: dict[Any, dict[str, Any]] = {
    F.linear: {"input": ..., "weight": ..., "bias": None},
    F.conv1d: _CONVOLUTION,
    F.conv2d: _CONVOLUTION,
    F.conv3d: _CONVOLUTION,
}
_TRAINING = ("training", "train")


def given_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments that a function is called with, by name; none where the names are not known."""
    return dict(zip(_parameters(node.target), node.args, strict=False)) | dict(node.kwargs)


def all_arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of a function, by name, with the defaults of those that are not given, in the order declared.

    Example:
        >>> graph = fx.Graph()
        >>> all_arguments(graph.call_function(F.linear, (1, 2)))
        {'input': 1, 'weight': 2, 'bias': None}
    """
    return _parameters(node.target) | given_arguments(node)


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Change an argument of a function, however it is given."""
    position = list(_parameters(node.target)).index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def training_argument(node: fx.Node) -> tuple[str, bool] | None:
    """Name and value of the literal `training` argument that a function is called with; None if there is none."""
    if node.op != "call_function":
        return None
    given = given_arguments(node)
    return next(((name, given[name]) for name in _TRAINING if isinstance(given.get(name), bool)), None)


@cache
def _parameters(function: Any) -> dict[str, Any]:
    """Names of a function's parameters, and their defaults; an ellipsis for those without."""
    if function in _BUILTIN:
        return _BUILTIN[function]
    if isinstance(function, torch._ops.OpOverload):
        return {argument.name: argument.default_value for argument in function._schema.arguments}
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {each.name: ... if each.default is each.empty else each.default for each in parameters}
