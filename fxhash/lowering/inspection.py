"""Whether the code of an opaque submodule looks at its layers and weights, instead of just calling the layers.

Such code would notice that a lowered layer is no longer the layer that it stands for. The source is searched, of every
function that the submodule's forward may call by its name: what can't be ruled out is taken for granted.
"""

from __future__ import annotations

import ast
from collections.abc import Collection
from functools import cache
from types import CodeType

import torch
from torch import nn

from fxhash.capture.called_code import functions_called_by, names_in
from fxhash.capture.hazards import functions_of

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
# Properties and methods of a weight that are the same whatever it is made of, and change nothing.
_HARMLESS = frozenset(
    ["dtype", "device", "shape", "size", "dim", "ndim", "numel", "t", "T", "mT", "to", "float", "transpose"]
)


def looks_at_weights(module: nn.Module, names: Collection[str]) -> bool:
    """Whether the code of a module, or of one nested in it, may do anything to these weights but multiply by them.

    Args:
        module: the module.
        names: names of the weights in the modules that hold them, such as `"weight"`.
    """
    return any(_is_suspicious(code, frozenset(names)) for code in functions_called_by(module))


@cache
def _is_suspicious(code: CodeType, names: frozenset[str]) -> bool:
    mentioned = names_in(code)
    if mentioned & _LOOKS_AT_LAYERS:
        return True
    if mentioned & _SHOWS_PARAMETERS and (mentioned & _ASKS_MORE or any(map(_is_in_place, mentioned))):
        return True
    if not mentioned & {*names, "type", "__class__"}:
        return False
    functions = functions_of(code)
    return not functions or any(_mentions(function, names) for function in functions)


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and hasattr(torch.Tensor, name)


def _mentions(function: ast.AST, names: Collection[str]) -> bool:
    parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and node.attr in names:
            if not _is_harmless(node, parents):
                return True
        elif isinstance(node, ast.Compare) and any(_asks_for_type(each) for each in (node.left, *node.comparators)):
            return True
    return False


def _asks_for_type(expression: ast.expr) -> bool:
    called = expression.func if isinstance(expression, ast.Call) else expression
    return (isinstance(called, ast.Name) and called.id == "type") or getattr(called, "attr", "") == "__class__"


def _is_harmless(weight: ast.Attribute, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a weight is only multiplied by, or asked for what it is by its shape and type."""
    node, parent = weight, parents.get(weight)
    if not isinstance(weight.ctx, ast.Load):
        return False
    while isinstance(parent, ast.Attribute) and parent.attr in _HARMLESS:
        if parent.attr in ("dtype", "device", "shape", "size", "dim", "ndim", "numel"):
            return True
        node, parent = parent, parents.get(parent)
        if isinstance(parent, ast.Call) and parent.func is node:
            node, parent = parent, parents.get(parent)  # type: ignore[assignment]
    if isinstance(parent, ast.BinOp):
        return isinstance(parent.op, ast.MatMult)
    called = getattr(parent, "func", None)
    owner = called.value if isinstance(called, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id in ("F", "torch") and not called.attr.endswith("_")  # type: ignore[union-attr]
