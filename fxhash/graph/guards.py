"""What a trace took for granted, checked again at each call of the graph."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

from torch import fx

from fxhash.errors import TransformError
from fxhash.graph.recorded import recorded


@recorded
def of_length(values: Sequence[Any], count: int) -> Sequence[Any]:
    """The same values, of which there must be as many as there were in the trace.

    Raises:
        TransformError: if there are more or less.
    """
    if len(values) != count:
        raise TransformError(
            f"the model was traced with {count} values where there are {len(values)} now: give transform "
            "example_inputs of this size, or capture='modules'"
        )
    return values


@recorded
def as_captured(value: Any, default: Any, name: str) -> None:
    """Let an argument be only what it is where a call omits it, as a trace took it.

    Args:
        value: the argument.
        default: its default: None, a number or a string.
        name: its name.

    Raises:
        TransformError: if it is something else.
    """
    if value is not default and (type(value) is not type(default) or value != default):
        raise TransformError(
            f"the model was captured without its argument {name!r}, which no example_inputs has: give transform one "
            "that has it, or capture='modules'"
        )


@recorded
def require(condition: Any, wanted: bool, error: str, message: str) -> None:
    """What an `assert`, or an `if` that does nothing but raise an error, found right in the trace.

    Args:
        condition: what it tests: a boolean, or a tensor of one.
        wanted: what the condition must be.
        error: name of the built-in error to raise if it isn't.
        message: its message.
    """
    if bool(condition) is not wanted:
        raise getattr(builtins, error)(message)


@recorded
def require_as_in_example(condition: Any, wanted: bool, where: str) -> None:
    """Let a forward that branches on sizes only be called with such that it goes the way it went in the trace.

    Args:
        condition: what it branches on.
        wanted: what it was in the trace.
        where: the line of the forward.

    Raises:
        TransformError: if it is something else.
    """
    if bool(condition) is not wanted:
        raise TransformError(
            f"the model was captured for inputs of other sizes: {where} branches on sizes, and goes another way for "
            "these than for example_inputs. Give transform inputs of these sizes, or capture='modules'"
        )


@recorded
def require_something(value: Any, name: str) -> None:
    """Let a value not be None, as it wasn't in the trace.

    Args:
        value: the value.
        name: its name in the graph.

    Raises:
        TransformError: if it is None.
    """
    if value is None:
        raise TransformError(
            f"the model was captured for calls in which {name} is not None, but now it is: give transform "
            "example_inputs with which it is, or capture='modules'"
        )


fx.node.has_side_effect(require)
fx.node.has_side_effect(require_as_in_example)
fx.node.has_side_effect(require_something)
fx.node.has_side_effect(as_captured)
