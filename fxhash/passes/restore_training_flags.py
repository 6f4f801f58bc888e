"""Let `training=` arguments that `symbolic_trace` froze follow `train()` and `eval()` again."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx

from fxhash.parts import TrainingFlag, free_name
from fxhash.passes.contract import graph_pass

_NAMES = ("training", "train")


@graph_pass
def restore_training_flags(graph_module: fx.GraphModule) -> bool:
    """Replace literal `training` arguments that equal the module's mode by a flag that follows it.

    `torch.fx.symbolic_trace` records `F.dropout(x, p, self.training)` with the value that the flag had then. A
    literal that says the opposite was the author's own, and stays.
    """
    mode = graph_module.training
    frozen = [
        (node, *argument)
        for node in graph_module.graph.nodes
        if (argument := _training_argument(node)) is not None and argument[1] is mode
    ]
    if not frozen:
        return False
    name = free_name(graph_module, "training_flag")
    graph_module.add_submodule(name, TrainingFlag(mode))
    with graph_module.graph.inserting_before(frozen[0][0]):
        flag = graph_module.graph.call_module(name)
    for node, key, _ in frozen:
        if isinstance(key, str):
            node.update_kwarg(key, flag)
        else:
            node.update_arg(key, flag)
    return True


def training_argument(node: fx.Node) -> bool | None:
    """The literal `training` argument of a call; None if it has none."""
    argument = _training_argument(node)
    return None if argument is None else argument[1]


def _training_argument(node: fx.Node) -> tuple[str | int, bool] | None:
    """Keyword or position, and value, of a literal `training` argument; None if there is none."""
    if node.op != "call_function":
        return None
    for name in _NAMES:
        if isinstance(node.kwargs.get(name), bool):
            return name, bool(node.kwargs[name])
    for position, (name, value) in enumerate(zip(_parameter_names(node.target), node.args, strict=False)):
        if name in _NAMES and isinstance(value, bool):
            return position, value
    return None


def _parameter_names(function: Any) -> list[str]:
    if isinstance(function, torch._ops.OpOverload):
        return [argument.name for argument in function._schema.arguments]
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []
