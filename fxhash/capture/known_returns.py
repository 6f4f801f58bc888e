"""Modules whose forward returns something at each end of its code, and so never None."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from fxhash.capture.known_values import is_function_that_gives, is_method_of_tensors
from fxhash.capture.sources import functions_of, own_nodes
from fxhash.capture.user_code import is_recording_code, is_user_code

_SOMETHING = (ast.Tuple, ast.List, ast.Dict, ast.Set, ast.BinOp, ast.UnaryOp, ast.Compare, ast.JoinedStr)


def returns_something(module: nn.Module) -> bool:
    """Whether calling a module never gives None.

    Torch's own modules give something. Of others the source is read: the last statement must return, and each that
    returns must return what can't be None, such as a tuple, or a call of a function of torch.

    Args:
        module: the module; it and those in it must have no hooks, which may change what is returned.
    """
    if any(each._forward_hooks or each._forward_pre_hooks for each in module.modules()) or "forward" in vars(module):
        return False
    if all(type(each).__module__.startswith("torch.nn.modules.") for each in module.modules()):
        return True
    kind = type(module)
    if kind.__call__ is not nn.Module.__call__ or kind._call_impl is not nn.Module._call_impl:
        return False
    forward: Any = kind.forward
    while isinstance(forward, FunctionType) and _is_by_autocast(forward.__code__):
        forward = getattr(forward, "__wrapped__", None)
    if not isinstance(forward, FunctionType) or not is_user_code(forward.__code__):
        return False
    found = functions_of(forward.__code__)
    return len(found) == 1 and _Function(found[0], forward.__globals__).returns_something()


def _is_by_autocast(code: CodeType) -> bool:
    """Whether a function is the decorator's of autocast, which returns what the function under it does."""
    return code.co_name == "decorate_autocast" and is_recording_code(code)


class _Function:
    """A function, by its source.

    Args:
        function: its source.
        variables: those of its module.
    """

    def __init__(self, function: ast.AST, variables: Mapping[str, Any]) -> None:
        self._body: list[ast.stmt] = getattr(function, "body", [])
        self._variables = variables
        self._own = [each for each in own_nodes(self._body) if isinstance(each, ast.AST)]
        # What has a value of its own is no variable of the module.
        self._stored = [each for each in self._own if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]
        arguments = [each.arg for each in ast.walk(function) if isinstance(each, ast.arg)]
        self._local = {*arguments, *(each.id for each in self._stored)}
        self._assigned: dict[str, list[ast.expr]] = {}
        for node in self._own:
            if isinstance(node, ast.Assign) and all(isinstance(each, ast.Name) for each in node.targets):
                for target in node.targets:
                    self._assigned.setdefault(target.id, []).append(node.value)  # type: ignore[attr-defined]
        self._arguments = set(arguments)

    def returns_something(self) -> bool:
        """Whether the function can only end by a return of something, or by an error."""
        if any(isinstance(each, (ast.Yield, ast.YieldFrom, ast.Await)) for each in self._own):
            return False
        returned = [each.value for each in self._own if isinstance(each, ast.Return)]
        return _ends(self._body) and all(each is not None and self._is_something(each, 3) for each in returned)

    def _is_something(self, expression: ast.expr, depth: int) -> bool:
        """Whether an expression can't be None."""
        if isinstance(expression, _SOMETHING):
            return True
        if isinstance(expression, ast.Constant):
            return expression.value is not None
        if isinstance(expression, ast.IfExp):
            return all(self._is_something(each, depth) for each in (expression.body, expression.orelse))
        if isinstance(expression, ast.Name) and depth and expression.id not in self._arguments:
            values = self._assigned.get(expression.id, [])
            stores = [each for each in self._stored if each.id == expression.id]
            return len(stores) == len(values) > 0 and all(self._is_something(each, depth - 1) for each in values)
        if not isinstance(expression, ast.Call):
            return False
        called = self._value_of(expression.func)
        if called is not None:
            name, module = getattr(called, "__name__", "_"), getattr(called, "__module__", None) or ""
            is_function = isinstance(called, (FunctionType, BuiltinFunctionType)) or module == "torch"
            return is_function and is_function_that_gives(module, name)
        return isinstance(expression.func, ast.Attribute) and is_method_of_tensors(expression.func.attr)

    def _value_of(self, expression: ast.expr) -> Any:
        """What a name stands for, or an attribute of a module that is imported; None where that is not known."""
        if isinstance(expression, ast.Name):
            return None if expression.id in self._local else self._variables.get(expression.id)
        if isinstance(expression, ast.Attribute):
            base = self._value_of(expression.value)
            return vars(base).get(expression.attr) if isinstance(base, ModuleType) else None
        return None


def _ends(body: Sequence[ast.stmt]) -> bool:
    """Whether the statements after some can't be reached."""
    last = body[-1]
    if isinstance(last, ast.If):
        return bool(last.orelse) and _ends(last.body) and _ends(last.orelse)
    return isinstance(last, (ast.Return, ast.Raise))
