"""Whether the code of an opaque submodule looks at its layers and weights, instead of just calling the layers.

Such code would notice that a lowered layer is no longer the layer that it stands for. The source is searched, of every
function that the submodule's forward may call by its name: what can't be ruled out is taken for granted.
"""

from __future__ import annotations

import ast
import weakref
from collections.abc import Collection
from functools import cache
from types import CodeType

import torch
from torch import nn

from fxhash.capture.called_code import functions_called_by
from fxhash.capture.references import names_in
from fxhash.capture.sources import functions_of

# What shows the layers of a module or takes them apart.
_LOOKS_AT_LAYERS = frozenset(
    [
        "children",
        "named_children",
        "modules",
        "named_modules",
        "_parameters",
        "_modules",
        "__dict__",
        "vars",
        "apply",
        "reset_parameters",
        "setattr",
        "delattr",
        "deepcopy",
        "copy",
        "load_state_dict",
        "vector_to_parameters",
        "init",
    ]
)
# What shows the parameters: lowered layers show theirs, generated for the occasion, so that a change of them is lost.
_SHOWS_PARAMETERS = frozenset(["parameters", "named_parameters", "state_dict", "get_parameter", "parameters_to_vector"])
_ASKS_MORE = frozenset(["data", "grad", "requires_grad", "requires_grad_", "is_leaf", "grad_fn", "Parameter", "type"])


def looks_at_weights(module: nn.Module, names: Collection[str]) -> bool:
    """Whether the code of a module, or of one nested in it, may do anything to these weights but multiply by them.

    Args:
        module: the module.
        names: names of the weights in the modules that hold them, such as `"weight"`.
    """
    return any(_is_suspicious(code, frozenset(names)) for code in functions_called_by(module))


def tells_modules_apart(module: nn.Module) -> bool:
    """Whether a module keeps something by the identity of modules, for which a replica would be another one."""
    by_identity = (weakref.WeakKeyDictionary, weakref.WeakSet, weakref.WeakValueDictionary)
    return any(isinstance(value, by_identity) for each in module.modules() for value in vars(each).values()) or any(
        "id" in code.co_names for code in functions_called_by(module)
    )


@cache
def _is_suspicious(code: CodeType, names: frozenset[str]) -> bool:
    mentioned = names_in(code)
    if mentioned & _LOOKS_AT_LAYERS or any(name.startswith("_foreach") for name in mentioned):
        return True
    if "getattr" in mentioned and (names & _strings_in(code) or not functions_of(code)):
        return True
    if mentioned & _SHOWS_PARAMETERS and (mentioned & _ASKS_MORE or any(map(_is_in_place, mentioned))):
        return True
    if not mentioned & {*names, "type", "__class__", "getattr"}:
        return False
    functions = functions_of(code)
    return not functions or any(_mentions(function, names) for function in functions)


def _strings_in(code: CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return {const for const in code.co_consts if isinstance(const, str)} | {
        string for each in inner for string in _strings_in(each)
    }


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and hasattr(torch.Tensor, name)


def _mentions(function: ast.AST, names: Collection[str]) -> bool:
    parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    changes = any(
        isinstance(node, ast.AugAssign)
        or (isinstance(node, ast.Attribute) and (_is_in_place(node.attr) or _is_assigned(node)))
        for node in ast.walk(function)
    )
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and len(node.args) > 1:
            if not isinstance(node.args[1], ast.Constant):
                return True
        elif isinstance(node, ast.Attribute) and node.attr in names:
            if not _is_harmless(node, parents, changes):
                return True
        elif isinstance(node, ast.Compare) and any(_asks_for_type(each) for each in (node.left, *node.comparators)):
            return True
    return False


def _is_assigned(node: ast.Attribute) -> bool:
    return node.attr == "data" and not isinstance(node.ctx, ast.Load)


def _asks_for_type(expression: ast.expr) -> bool:
    called = expression.func if isinstance(expression, ast.Call) else expression
    return (isinstance(called, ast.Name) and called.id == "type") or getattr(called, "attr", "") == "__class__"


def _is_harmless(weight: ast.Attribute, parents: dict[ast.AST, ast.AST], changes: bool) -> bool:
    """Whether a weight is only computed with.

    Args:
        weight: where it is read.
        parents: the node above each.
        changes: whether the function changes anything in place.
    """
    if not isinstance(weight.ctx, ast.Load):
        return False
    node: ast.AST = weight
    parent = parents.get(node)
    while isinstance(parent, (ast.Attribute, ast.Subscript)) or (isinstance(parent, ast.Call) and parent.func is node):
        if isinstance(parent, ast.Attribute) and (parent.attr in _ASKS_MORE or _is_in_place(parent.attr)):
            return False
        if not isinstance(getattr(parent, "ctx", None), (ast.Load, type(None))):
            return False
        node, parent = parent, parents.get(parent)
    if isinstance(parent, ast.keyword):
        parent = parents.get(parent)
    if isinstance(parent, ast.Call):
        owner = parent.func.value if isinstance(parent.func, ast.Attribute) else None
        is_of_torch = owner is not None and ast.unparse(owner) in ("F", "torch", "nn.functional", "torch.nn.functional")
        return is_of_torch and not getattr(parent.func, "attr", "").endswith("_")
    if isinstance(parent, ast.Compare):
        return not any(isinstance(operator, (ast.Is, ast.IsNot)) for operator in parent.ops)
    return isinstance(parent, (ast.BinOp, ast.UnaryOp)) or not changes
