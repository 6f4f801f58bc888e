"""What in a function's source a proxy can't observe: tests of identity and of types, and errors that are caught.

Python lets no object see that it is compared by `is`. So the source says where that is done, and the frame that is
about to do it says with what: only where that is a value of the graph can the answer be a wrong one.
"""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, fx, nn

from fxhash.capture.sources import functions_of, own_nodes

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Functions that ask a proxy what only a tensor can answer, without it noticing.
_ASKING = {"type", "id", "callable", "hasattr"}
_IDENTITY_OPERATIONS = ("IS_OP", "MATCH_", "NONE")
_CATCHING_OPERATIONS = ("CHECK_EXC_MATCH", "JUMP_IF_NOT_EXC_MATCH", "POP_EXCEPT")
# Code that is part of a function's, or of a module that is imported.
_PARTS = ("<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
_UNKNOWN = object()
_MISSING = object()
# Stands for an attribute of a value of the graph.
_SOME_VALUE = fx.Proxy(fx.Graph().placeholder("value"))


@dataclass(frozen=True)
class Hazard:
    """A place in a function where a trace may take a wrong turn without noticing.

    Attributes:
        first: number of its first line.
        last: number of its last line.
        operands: what is asked about; empty where it is a hazard whatever the values are.
        bound: names that get their value on these lines themselves, with where it comes from; None if that is unknown.
        what: what the function does there, for the reason.
        of_weights: whether a parameter or buffer of the model would give another answer, too.
        about_none: whether it is only asked whether the operands are None, which some values can't be.
        owner: of what the function that asks is an attribute: `x.type(y)` of a tensor is no question.
    """

    first: int
    last: int
    operands: tuple[ast.expr, ...]
    bound: Mapping[str, ast.expr | None]
    what: str
    of_weights: bool = False
    about_none: bool = False
    owner: ast.expr | None = None

    def applies(self, frame: FrameType) -> bool:
        """Whether, in a frame that is about to run these lines, a value of the graph is asked about."""
        if not self.operands:
            return True
        if self.owner is not None and isinstance(_peek(self.owner, frame, self.bound), (fx.Proxy, Tensor)):
            return False
        if self.of_weights and any(isinstance(_peek(each, frame, self.bound), Tensor) for each in self.operands):
            return True
        if self.about_none:
            values = [_peek(each, frame, self.bound) for each in self.operands]
            if all(value is None or getattr(type(value), "is_never_none", _no)(value) for value in values):
                return False
        return any(_may_be_recorded(each, frame, self.bound) for each in self.operands)


def hazards_of(code: CodeType) -> tuple[Hazard, ...] | None:
    """The hazards of a function; None where there may be some, but its source can't be read."""
    if code.co_name in _PARTS or (code.co_filename == "<string>" and code.co_name == "__init__"):
        return ()
    if not _may_have_some(code):
        return ()
    functions = functions_of(code)
    if not functions:
        return None
    return tuple(hazard for function in functions for hazard in _hazards_in(function))


def _no(value: object) -> bool:
    return False


def _may_have_some(code: CodeType) -> bool:
    """Whether a function's own code, or that of a comprehension in it, has an operation or name that may be one."""
    for each in (code, *(const for const in code.co_consts if inspect.iscode(const) and const.co_name[0] == "<")):
        if (_ASKING | {"getattr"}) & {*each.co_names}:
            return True
        for operation in dis.get_instructions(each):
            name = operation.opname
            if any(part in name for part in _IDENTITY_OPERATIONS) or name in _CATCHING_OPERATIONS:
                return True
    return False


def _hazards_in(function: ast.AST) -> Iterator[Hazard]:
    body: Sequence[ast.AST] = function.body if isinstance(function.body, list) else [function.body]  # type: ignore[attr-defined]
    for statement in own_nodes(body):
        handlers: list[ast.AST] = getattr(statement, "handlers", [])
        guarded: list[Any] = getattr(statement, "body", [])
        if handlers and not _only_asks_torch(guarded):
            last = max(each.end_lineno for each in guarded)
            yield Hazard(guarded[0].lineno, last, (), {}, "catches errors")
        for operands, what in _questions(statement):
            first, last = statement.lineno, statement.end_lineno  # type: ignore[attr-defined]
            about_none = isinstance(statement, ast.Compare) and any(
                isinstance(each, ast.Constant) and each.value is None for each in operands
            )
            bound, is_call = _bound_on(body, first, last), isinstance(statement, ast.Call)
            owner = getattr(getattr(statement, "func", None), "value", None)
            yield Hazard(first, last, operands, bound, what, is_call, about_none, owner)


def _only_asks_torch(statements: Sequence[ast.AST]) -> bool:
    """Whether statements only return what a function of torch without arguments says, which no value can make fail."""
    if len(statements) != 1 or not isinstance(statements[0], ast.Return):
        return False
    nodes = [node for node in ast.walk(statements[0]) if isinstance(node, ast.expr)]
    return all(
        (isinstance(node, ast.Call) and not node.args and not node.keywords)
        or isinstance(node, ast.Attribute)
        or (isinstance(node, ast.Name) and node.id == "torch")
        for node in nodes
    )


def _questions(node: ast.AST) -> Iterator[tuple[tuple[ast.expr, ...], str]]:
    if isinstance(node, ast.Compare) and any(isinstance(operator, (ast.Is, ast.IsNot)) for operator in node.ops):
        yield (node.left, *node.comparators), "asks whether it is None, or the same object as another"
    elif isinstance(node, ast.Match):
        yield (node.subject,), "asks for the form"
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if node.args and (name in _ASKING or (name == "getattr" and len(node.args) == 3)):
            yield tuple(node.args), f"asks by {name}()"


def _bound_on(body: Sequence[ast.AST], first: int, last: int) -> dict[str, ast.expr | None]:
    """Names that get a value on some lines, before or while a question is asked there: a frame may hold older ones."""
    bound: dict[str, ast.expr | None] = {}
    statements = [
        node for node in own_nodes(body) if isinstance(node, ast.stmt) and first <= node.lineno and node.lineno <= last
    ]
    for node in own_nodes(body):
        if not hasattr(node, "lineno") and not isinstance(node, ast.comprehension):
            continue
        if isinstance(node, _COMPREHENSIONS) and first <= node.lineno <= last:
            for generator in node.generators:
                bound |= dict.fromkeys(_names_in(generator.target), generator.iter)
        elif isinstance(node, ast.NamedExpr) and first <= node.lineno <= last:
            bound[node.target.id] = node.value
        elif isinstance(node, (ast.For, ast.AsyncFor)) and first <= node.lineno <= last and node.body[0].lineno <= last:
            bound |= dict.fromkeys(_names_in(node.target), node.iter)
        elif isinstance(node, ast.stmt) and len(statements) > 1 and first <= node.lineno <= last:
            # Several statements on one line.
            for each in ast.walk(node):
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                    bound.setdefault(each.id, getattr(node, "value", None))
    return bound


def _names_in(target: ast.AST) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]


def _may_be_recorded(expression: ast.expr, frame: FrameType, bound: Mapping[str, ast.expr | None]) -> bool:
    """Whether an expression may give a value of the graph."""
    if isinstance(expression, ast.Name) and expression.id in bound:
        return _has_recorded(expression, frame, bound)
    value = _peek(expression, frame, bound)
    return isinstance(value, fx.Proxy) if value is not _UNKNOWN else _has_recorded(expression, frame, bound)


def _has_recorded(expression: ast.expr, frame: FrameType, bound: Mapping[str, ast.expr | None]) -> bool:
    """Whether an expression has something to do with a value of the graph."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Name):
            if holds_recorded(_value_of(node.id, frame)):
                return True
            if node.id in bound:
                source = bound[node.id]
                others = {name: value for name, value in bound.items() if name != node.id}
                if source is None or _has_recorded(source, frame, others):
                    return True
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and holds_recorded(_peek(node, frame, bound)):
            return True
    return False


def _value_of(name: str, frame: FrameType) -> Any:
    for names in (frame.f_locals, frame.f_globals, frame.f_builtins):
        if name in names:
            return names[name]
    return None


def _peek(expression: ast.expr, frame: FrameType, bound: Mapping[str, ast.expr | None]) -> Any:
    """The value of an expression, found without running any code; `_UNKNOWN` where that can't be."""
    if isinstance(expression, ast.Constant):
        return expression.value
    if isinstance(expression, ast.Name):
        return _UNKNOWN if expression.id in bound else _value_of(expression.id, frame)
    if isinstance(expression, ast.Attribute):
        return _attribute(_peek(expression.value, frame, bound), expression.attr)
    if isinstance(expression, ast.Subscript):
        base, key = _peek(expression.value, frame, bound), _peek(expression.slice, frame, bound)
        if type(base) in (list, tuple, dict) and isinstance(key, (int, str)):
            try:
                return base[key]
            except (LookupError, TypeError):
                return None
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name) and expression.func.id == "getattr":
        base, name, *default = (_peek(each, frame, bound) for each in expression.args)
        if base is not _UNKNOWN and isinstance(name, str):
            value = _attribute(base, name, _MISSING)
            return value if value is not _MISSING else default[0] if default else None
    return _UNKNOWN


def _attribute(base: Any, name: str, missing: Any = _UNKNOWN) -> Any:
    """An attribute that an object holds itself, or its class as it is."""
    if base is _UNKNOWN or isinstance(base, fx.Proxy):
        return base if base is _UNKNOWN else _SOME_VALUE
    tables = ("_parameters", "_buffers", "_modules") if isinstance(base, nn.Module) else ()
    own = getattr(base, "__dict__", {})
    for names in (own, *(own.get(table, {}) for table in tables)):
        if name in names:
            # Past the table of a traced module, which would record that it is read.
            return dict.__getitem__(names, name) if isinstance(names, dict) else names[name]
    value = inspect.getattr_static(type(base), name, _MISSING)
    if value is _MISSING:
        return missing
    return _UNKNOWN if hasattr(type(value), "__get__") and not inspect.isfunction(value) else value


def holds_recorded(value: Any, depth: int = 4) -> bool:
    """Whether something is a value of the graph, or holds one."""
    if isinstance(value, fx.Proxy):
        return True
    if depth == 0 or isinstance(value, (nn.Module, type, str, bytes)):
        return False
    if isinstance(value, Mapping):
        return any(holds_recorded(each, depth - 1) for each in value.values())
    if isinstance(value, (list, tuple, set)):
        return any(holds_recorded(each, depth - 1) for each in value)
    return any(holds_recorded(each, min(depth - 1, 1)) for each in getattr(value, "__dict__", {}).values())
