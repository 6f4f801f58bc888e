"""Let `training=` arguments that `symbolic_trace` froze follow `train()` and `eval()` again."""

from __future__ import annotations

from torch import fx

from fxhash.capture.leaf_modules import TrainingFlag
from fxhash.graph.arguments import set_argument, training_argument
from fxhash.graph.names import free_name
from fxhash.passes.contract import graph_pass


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
        if (argument := training_argument(node)) is not None and argument[1] is mode
    ]
    if not frozen:
        return False
    path = free_name(graph_module, "training_flag")
    graph_module.add_submodule(path, TrainingFlag(mode))
    with graph_module.graph.inserting_before(frozen[0][0]):
        flag = graph_module.graph.call_module(path)
    for node, name, _ in frozen:
        set_argument(node, name, flag)
    return True
