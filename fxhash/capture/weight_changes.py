"""Code that does to a weight what none that is generated allows: to change it, or to ask whether it is a parameter."""

from __future__ import annotations

import ast
from collections.abc import Collection, Container
from functools import cache
from types import CodeType

import torch
from torch import fx, nn

from fxhash.capture.called_code import functions_called_by
from fxhash.capture.opaque import OpaqueModule
from fxhash.capture.references import names_in
from fxhash.capture.sources import functions_of
from fxhash.capture.user_code import is_user_code
from fxhash.errors import TransformError
from fxhash.graph.liveness import is_changed_in_place
from fxhash.graph.names import original_name

# What is another of a generated weight than of a parameter.
ASKS_FOR_PARAMETER = frozenset({"requires_grad", "is_leaf", "grad", "grad_fn"})
_SHOW_PARAMETERS = frozenset({"parameters", "named_parameters", "_parameters"})


def refuse_changed_weights(
    traced: fx.GraphModule, exposed: Collection[str], called: Container[CodeType] | None = None
) -> None:
    """Refuse a captured model that changes a parameter which is to be generated, or asks whether it is a parameter.

    Args:
        traced: the captured model.
        exposed: names of these parameters in it.
        called: the code that the model was seen to call; by default, all that it may call.

    Raises:
        TransformError: naming the parameter, or the opaque submodule.
    """
    for node in traced.graph.nodes:
        if node.op == "get_attr" and node.target in exposed:
            asked = {user.args[1] for user in node.users if user.target is getattr} & ASKS_FOR_PARAMETER
            what = f"asks for its {min(asked)}" if asked else "changes it in place"
            # An embedding of a largest norm scales rows of its weight down, the same rows each time.
            readers = [user for value in (node, *node.users) for user in value.users]
            scaled = any(user.target is torch.ops.aten.embedding_renorm_.default for user in readers)
            if asked or (is_changed_in_place(node) and not scaled):
                raise TransformError(
                    f"the parameter {node.target!r} can't be generated: the model {what}. Exclude it, or change forward"
                )
    for path, module in traced.named_modules():
        if isinstance(module, OpaqueModule):
            names = {name.rpartition(".")[2] for group in module.names for name in group}
            asks = asks_for_parameters(module.wrapped_module, names, called)
            found = asks or _reads_in_train(module.wrapped_module, names)
            if found is not None:
                never_called = ", or give example_inputs that show that it is never called" if called is None else ""
                raise TransformError(
                    f"the weights of {original_name(path) or 'the model'} can't be generated: its code {found}. "
                    f"Exclude them, or change forward{never_called if asks else ''}"
                )


def _reads_in_train(module: nn.Module, names: Collection[str]) -> str | None:
    """Whether `train()` or `eval()` of a class of its own reads weights: they are there in calls alone."""
    for each in module.modules():
        for name in ("train", "eval"):
            code = getattr(getattr(type(each), name), "__code__", None)
            if code is not None and is_user_code(code) and names_in(code) & set(names):
                return f"reads weights in {name}()"
    return None


def asks_for_parameters(
    module: nn.Module, names: Collection[str], called: Container[CodeType] | None = None
) -> str | None:
    """What the code of a module, or of one nested in it, asks of its weights that is another of a generated one.

    Args:
        module: the module.
        names: names of the weights in the modules that hold them, such as `"weight"`.
        called: the code that counts; by default, all that the module may call.

    Returns:
        Such as `"asks for grad of weight (in forward)"`; None if nothing was found.
    """
    codes = (code for code in functions_called_by(module) if called is None or code in called)
    found = (_found_in(code, frozenset(names)) for code in codes)
    return next((what for what in found if what is not None), None)


@cache
def _found_in(code: CodeType, names: frozenset[str]) -> str | None:
    mentioned = names_in(code)
    asked = mentioned & ASKS_FOR_PARAMETER if mentioned & _SHOW_PARAMETERS else None
    if asked:
        return f"asks for {min(asked)} of its parameters (in {code.co_name})"
    if not mentioned & (names | {"deepcopy"}):
        return None
    found = (_what(node, names) for function in functions_of(code) for node in ast.walk(function))
    return next((f"{what} (in {code.co_name})" for what in found if what is not None), None)


def _what(node: ast.AST, names: Collection[str]) -> str | None:
    if isinstance(node, ast.Attribute):
        name = _weight_below(node.value, names)
        if name is not None and node.attr in ASKS_FOR_PARAMETER:
            return f"asks for {node.attr} of {name}"
    elif isinstance(node, ast.Call) and node.args:
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        name = _weight_below(node.args[0], names)
        if called == "type" and name is not None:
            return f"asks for the type of {name}"
        if called == "deepcopy" and _is_of_self(node.args[0]):
            return "copies its layers"
    return None


def _is_of_self(expression: ast.AST) -> bool:
    while isinstance(expression, (ast.Attribute, ast.Subscript)):
        expression = expression.value
    return isinstance(expression, ast.Name) and expression.id == "self"


def _weight_below(expression: ast.AST, names: Collection[str]) -> str | None:
    """The weight that an expression gives, or a view of; None if it gives something else."""
    while True:
        if isinstance(expression, ast.Attribute) and expression.attr in names:
            return expression.attr
        if isinstance(expression, (ast.Attribute, ast.Subscript)):
            expression = expression.value
        elif isinstance(expression, ast.Call) and isinstance(expression.func, ast.Attribute):
            expression = expression.func.value
        else:
            return None
