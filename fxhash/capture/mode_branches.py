"""Branches on a training flag that change no more than numbers: both ways are traced, and made one.

`p if self.training else 0.0` has one graph, in which the number is chosen by the flag at each call. Where the two ways
do different operations there is none, and the module is opaque.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from fxhash.capture.observed_proxy import ObservedFlag
from fxhash.capture.untraceable import UntraceableError
from fxhash.graph.modes import by_mode

_NUMBERS = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


class ModeBranchError(UntraceableError):
    """Raised where a forward branches on the training flag of a module.

    Attributes:
        flag: the flag.
    """

    def __init__(self, message: str, flag: ObservedFlag) -> None:
        super().__init__(message)
        self.flag = flag


class ModeRecording(NamedTuple):
    """What a forward did in one mode.

    Attributes:
        nodes: what it recorded, in order.
        result: what it returned, as an argument of a node.
    """

    nodes: list[fx.Node]
    result: Any


def merge(graph: fx.Graph, flag: fx.Node, training: ModeRecording, evaluation: ModeRecording) -> bool:
    """Make one of two recordings of the same code, one in each mode; false where they do different operations.

    Args:
        graph: the graph that holds both; the nodes of the second are erased.
        flag: gives the training flag.
        training: what was recorded in training.
        evaluation: what was recorded in evaluation.
    """
    nodes, others = training.nodes, evaluation.nodes
    if len(nodes) != len(others):
        return False
    same = dict(zip(others, nodes, strict=True))
    found: list[tuple[fx.Node, Any, Any]] = []
    try:
        for node, other in zip(nodes, others, strict=True):
            if (node.op, node.target) != (other.op, other.target):
                return False
            found.append(
                (node, *(_both(a, b, same) for a, b in ((node.args, other.args), (node.kwargs, other.kwargs))))
            )
        if _holds_choice(_both(training.result, evaluation.result, same)):
            return False
    except _DifferentError:
        return False
    for other in reversed(others):
        graph.erase_node(other)
    for node, args, kwargs in found:
        if _holds_choice((args, kwargs)):
            with graph.inserting_before(node):
                node.args, node.kwargs = _chosen(args, graph, flag), _chosen(kwargs, graph, flag)
    return True


class _DifferentError(Exception):
    """The two recordings differ in more than numbers."""


class _Choice:
    """Two numbers, of which the training flag chooses one."""

    def __init__(self, training: Any, evaluation: Any) -> None:
        self.training = training
        self.evaluation = evaluation


def _both(one: Any, other: Any, same: dict[fx.Node, fx.Node]) -> Any:
    """An argument as it is in both recordings, with choices where it is another number.

    Args:
        one: the argument in the first recording.
        other: the argument in the second.
        same: for each node of the second, that of the first.
    """
    if isinstance(one, fx.Node) and isinstance(other, fx.Node):
        if same.get(other, other) is not one:
            raise _DifferentError
        return one
    if isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS):
        # Zero and its negative are equal, and no number is equal to NaN.
        return one if type(one) is type(other) and repr(one) == repr(other) else _Choice(one, other)
    if type(one) is not type(other):
        raise _DifferentError
    if isinstance(one, (tuple, list)) and len(one) == len(other) and not hasattr(one, "_fields"):
        return type(one)([_both(*each, same) for each in zip(one, other, strict=True)])
    if isinstance(one, dict) and list(one) == list(other):
        return {name: _both(one[name], other[name], same) for name in one}
    if isinstance(one, slice):
        parts = [_both(getattr(one, name), getattr(other, name), same) for name in ("start", "stop", "step")]
        return slice(*parts)
    raise _DifferentError


def _holds_choice(argument: Any) -> bool:
    if isinstance(argument, slice):
        argument = (argument.start, argument.stop, argument.step)
    if isinstance(argument, (tuple, list, dict)):
        return any(map(_holds_choice, argument.values() if isinstance(argument, dict) else argument))
    return isinstance(argument, _Choice)


def _chosen(argument: Any, graph: fx.Graph, flag: fx.Node) -> Any:
    """An argument with a node in place of each choice."""
    if isinstance(argument, _Choice):
        return graph.call_function(by_mode, (flag, argument.training, argument.evaluation))
    if isinstance(argument, (tuple, list)):
        return type(argument)([_chosen(each, graph, flag) for each in argument])
    if isinstance(argument, dict):
        return {name: _chosen(each, graph, flag) for name, each in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_chosen(each, graph, flag) for each in (argument.start, argument.stop, argument.step)))
    return argument
