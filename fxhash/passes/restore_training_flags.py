"""Let `training=` arguments that `symbolic_trace` froze follow `train()` and `eval()` again."""

from __future__ import annotations

import inspect

from torch import fx

from fxhash.parts import TrainingFlag, free_name
from fxhash.passes.contract import graph_pass


@graph_pass
def restore_training_flags(graph_module: fx.GraphModule) -> bool:
    """Replace literal `training` arguments that equal the module's mode by a flag that follows it.

    `torch.fx.symbolic_trace` records `F.dropout(x, p, self.training)` with the value that the flag had then. A
    literal that says the opposite was the author's own, and stays.
    """
    frozen = [node for node in graph_module.graph.nodes if _frozen_argument(node, graph_module.training) is not None]
    if not frozen:
        return False
    name = free_name(graph_module, "training_flag")
    graph_module.add_submodule(name, TrainingFlag(graph_module.training))
    with graph_module.graph.inserting_before(frozen[0]):
        flag = graph_module.graph.call_module(name)
    for node in frozen:
        argument = _frozen_argument(node, graph_module.training)
        if isinstance(argument, str):
            node.update_kwarg(argument, flag)
        elif isinstance(argument, int):
            node.update_arg(argument, flag)
    return True


def _frozen_argument(node: fx.Node, training: bool) -> str | int | None:
    """The keyword or position of a literal `training` argument that equals `training`."""
    if node.op != "call_function":
        return None
    for name in ("training", "train"):
        if node.kwargs.get(name) is training:
            return name
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    for position, (name, value) in enumerate(zip(names, node.args, strict=False)):
        if name in ("training", "train") and value is training:
            return position
    return None
