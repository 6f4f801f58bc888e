"""Tests of a forward whose answer can be foreseen: with the other one it does nothing but raise an error."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType, FunctionType

from fxhash.capture.sources import functions_of

_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
# In these, Python asks for the truth of other values than that of the test.
_ASK_INSIDE = (
    *(ast.IfExp, ast.BoolOp, ast.Lambda, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)
# Methods of lists that compare what is in them.
_COMPARING_METHODS = frozenset({"index", "count", "remove", "sort"})


@dataclass(frozen=True)
class GuardedTest:
    """An answer without which a forward raises an error.

    Attributes:
        wanted: the answer.
        error: name of the built-in error.
        message: its message, in which nothing is filled in.
    """

    wanted: bool
    error: str
    message: str


def guarded_test(frame: FrameType) -> GuardedTest | None:
    """The test for whose sake a frame is about to ask for the truth of a value; None if it is no such test."""
    for function in functions_of(frame.f_code):
        found = [node for node in ast.walk(function) if isinstance(node, (ast.Assert, ast.If)) and _is_at(node, frame)]
        if len(found) == 1 and _is_alone(found[0], function):
            return _read(found[0], frame)
    return None


def _is_at(statement: ast.Assert | ast.If, frame: FrameType) -> bool:
    return statement.test.lineno <= frame.f_lineno <= (statement.test.end_lineno or statement.test.lineno)


def _is_alone(statement: ast.Assert | ast.If, function: ast.AST) -> bool:
    """Whether no other statement is on the lines of the test."""
    first, last = statement.test.lineno, statement.test.end_lineno or statement.test.lineno
    inside = {id(node) for node in ast.walk(statement)}
    return not any(
        first <= line <= last
        for node in ast.walk(function)
        if isinstance(node, ast.stmt) and id(node) not in inside and node is not function
        for line in _own_lines(node)
    )


def _own_lines(statement: ast.stmt) -> Iterator[int]:
    """The first and last line of a statement; of one that has others in it, the lines before these."""
    body = getattr(statement, "body", None)
    last = statement.end_lineno if body is None else max(statement.lineno, body[0].lineno - 1)
    yield from range(statement.lineno, (last or statement.lineno) + 1)


def _read(statement: ast.Assert | ast.If, frame: FrameType) -> GuardedTest | None:
    if isinstance(statement, ast.Assert):
        wanted, error, message = True, "AssertionError", statement.msg
    else:
        last = statement.body[-1]
        raised = last.exc if isinstance(last, ast.Raise) else None
        called = raised.func if isinstance(raised, ast.Call) else raised
        if not isinstance(called, ast.Name) or not _is_error(called.id):
            return None
        wanted, error = False, called.id
        message = raised.args[0] if isinstance(raised, ast.Call) and raised.args else None
    answer = _wanted(statement.test, wanted, frame)
    if answer is None:
        return None
    where = f"line {statement.lineno} of {frame.f_code.co_name}"
    text = str(message.value) if isinstance(message, ast.Constant) else ast.unparse(message or statement.test)
    return GuardedTest(answer, error, f"{text} ({where})")


def _is_error(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, Exception)


def _wanted(test: ast.expr, wanted: bool, frame: FrameType) -> bool | None:
    """What each value in a test must be for the test to be `wanted`; None if that differs, or isn't known."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _wanted(test.operand, not wanted, frame)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) is wanted:
        answers = {_wanted(each, wanted, frame) for each in test.values}
        return answers.pop() if len(answers) == 1 else None
    if isinstance(test, ast.Compare):
        if not all(isinstance(each, _COMPARISONS) for each in test.ops) or (len(test.ops) > 1 and not wanted):
            return None
        return wanted if all(_is_simple(each, frame) for each in (test.left, *test.comparators)) else None
    return wanted if _is_simple(test, frame) else None


def _is_simple(expression: ast.expr, frame: FrameType) -> bool:
    """Whether an expression asks for the truth of nothing."""
    for node in ast.walk(expression):
        if isinstance(node, _ASK_INSIDE) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
            return False
        if isinstance(node, ast.Compare) and (len(node.ops) > 1 or not isinstance(node.ops[0], _COMPARISONS)):
            return False
        if isinstance(node, ast.Call) and not _is_harmless(node.func, frame):
            return False
    return True


def _is_harmless(called: ast.expr, frame: FrameType) -> bool:
    if isinstance(called, ast.Attribute):
        return called.attr not in _COMPARING_METHODS
    name = called.id if isinstance(called, ast.Name) else ""
    return name == "len" or isinstance(frame.f_globals.get(name), FunctionType)
