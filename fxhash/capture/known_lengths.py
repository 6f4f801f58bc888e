"""How many values there are in one of a graph, as far as the call that gives it says."""

from __future__ import annotations

import ast
import dis
from types import FrameType
from typing import Any

import torch
from torch import fx

from fxhash.capture.sources import functions_of

# Those of torch that return one tensor for each that they are given.
_ONE_FOR_EACH = frozenset([torch.meshgrid, torch.broadcast_tensors])


def known_length(node: fx.Node) -> int | None:
    """The number of values; None if it isn't known. Fewer may be there of `chunk`.

    Args:
        node: the call.
    """
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _ONE_FOR_EACH:
        first = node.args[0] if node.args else None
        return len(first) if isinstance(first, (list, tuple)) else len(node.args)
    if is_chunk(node):
        count = _argument(node, 1, "chunks")
        return count if isinstance(count, int) else None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in ("split", "split_with_sizes"):
        sizes = _argument(node, 1, "split_size" if name == "split" else "split_sizes")
        return len(sizes) if isinstance(sizes, (list, tuple)) else None
    return None


def is_chunk(node: fx.Node) -> bool:
    """Whether a call may give fewer values than it is asked for."""
    return node.target in ("chunk", torch.chunk)


def taken_from(frame: FrameType) -> list[int] | None:
    """Which values a frame is about to take from one that it iterates over, by index; None if its source doesn't say.

    The first two in `a, b = value`, the first three in `a, b, c, d = *value, last`, the last two in `*_, a, b = value`
    where nothing reads `_`.
    """
    code, position = frame.f_code.co_code, frame.f_lasti
    # Up to Python 3.10 a frame is at the first of these, which belong to the operation after them.
    while code[position] == dis.EXTENDED_ARG:
        position += 2
    name, argument = dis.opname[code[position]], code[position + 1]
    if name == "UNPACK_SEQUENCE":
        return list(range(argument))
    if name not in ("UNPACK_EX", "LIST_EXTEND"):
        return None
    found = [
        _taken_by(node, function, is_extended=name == "LIST_EXTEND")
        for function in functions_of(frame.f_code)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno)
    ]
    return found[0] if len(found) == 1 else None


def _taken_by(statement: ast.Assign, function: ast.AST, is_extended: bool) -> list[int] | None:
    target, value = statement.targets[0], statement.value
    if not isinstance(target, ast.Tuple) or len(statement.targets) > 1:
        return None
    first, last = 0, 0
    if is_extended:
        elements = value.elts if isinstance(value, ast.Tuple) else []
        starred = [index for index, each in enumerate(elements) if isinstance(each, ast.Starred)]
        if len(starred) != 1:
            return None
        first, last = starred[0], len(elements) - starred[0] - 1
    rest = [index for index, each in enumerate(target.elts) if isinstance(each, ast.Starred)]
    if not rest:
        return list(range(len(target.elts) - first - last))
    before, after = rest[0] - first, len(target.elts) - rest[0] - 1 - last
    if before < 0 or after < 0 or _is_read(target.elts[rest[0]], function):
        return None
    return [*range(before), *range(-after, 0)]


def _is_read(starred: ast.expr, function: ast.AST) -> bool:
    name = getattr(getattr(starred, "value", None), "id", None)
    return name is None or any(
        isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load) for node in ast.walk(function)
    )


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)
