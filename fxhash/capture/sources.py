"""The source of functions: where it is read, and what is on a line of it."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import CodeType, FrameType, FunctionType
from typing import Any

_MOST_ATTEMPTS = 5

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def functions_of(code: CodeType) -> list[ast.AST]:
    """The source of a function: several where several begin on its line, none where it can't be read."""
    functions = _functions_in(code.co_filename, _checksum(code.co_filename))
    return functions.get((code.co_name, code.co_firstlineno), [])


def with_lines_of(function: Callable[..., Any], changed: Callable[..., Any]) -> Callable[..., Any]:
    """A function that torch.fx made of another, with other arguments, gets the numbers of the other's lines.

    On Python 3.10, and in old versions of torch on any, its own are in a form that Python misreads: its frames name
    lines at random.
    """
    if isinstance(function, FunctionType) and isinstance(changed, FunctionType):
        code, other = function.__code__, changed.__code__
        if other is not code and other.co_code == code.co_code:
            changed.__code__ = other.replace(co_linetable=code.co_linetable)
    return changed


def calls_on_line(frame: FrameType, names: frozenset[str]) -> bool:
    """Whether the line that a frame runs may call a function of one of these names, or read such an attribute."""
    if not names & {*frame.f_code.co_names}:
        return False
    functions = functions_of(frame.f_code)
    nodes = [node for function in functions for node in ast.walk(function)]
    return not functions or any(
        node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno)
        for node in nodes
        if (isinstance(node, ast.Attribute) and node.attr in names) or (isinstance(node, ast.Name) and node.id in names)
    )


def is_message(frame: FrameType) -> bool:
    """Whether the line that a frame runs is a call of `torch._assert`, whose message nobody reads if all is well."""
    return any(
        node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno)
        for function in functions_of(frame.f_code)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "_assert"
    )


def own_nodes(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of a function's body without those of functions and classes in it."""
    pending = list(body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            pending.extend(ast.iter_child_nodes(node))


def _checksum(filename: str) -> int:
    return hash(tuple(linecache.getlines(filename)))


def file_of(code: CodeType) -> ast.Module | None:
    """The source of the file that a function is from; None where it can't be read."""
    return _parsed(code.co_filename, _checksum(code.co_filename))


@cache
def _parsed(filename: str, checksum: int) -> ast.Module | None:
    lines = linecache.getlines(filename)
    for _ in range(_MOST_ATTEMPTS):
        try:
            return ast.parse("".join(lines)) if lines else None
        except SyntaxError:
            return None
        except SystemError:
            # Python counts the depth of a parse in one place for all threads: one that parses meanwhile disturbs it.
            pass
    return None


@cache
def _functions_in(filename: str, checksum: int) -> dict[tuple[str, int], list[ast.AST]]:
    """The functions of a file, by name and first line, that of the first decorator."""
    tree = _parsed(filename, checksum)
    if tree is None:
        return {}
    found: dict[tuple[str, int], list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            decorators = getattr(node, "decorator_list", [])
            line = min(node.lineno, *(each.lineno for each in decorators)) if decorators else node.lineno
            found.setdefault((getattr(node, "name", "<lambda>"), line), []).append(node)
    return found
