"""Generate each weight on its own, right before its first use."""

from __future__ import annotations

from torch import fx

from fxhash.generator import SMHGenerator
from fxhash.passes.contract import graph_pass


@graph_pass
def generate_on_demand(graph_module: fx.GraphModule) -> bool:
    """Drop the product of all weights at once; a weight then lives from its first use to its last.

    The code that `torch.fx` writes for a graph frees every value after its last use, so at any time only those
    weights exist that are in use.
    """
    position = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    modified = False
    for node in list(graph_module.graph.nodes):
        if node.op != "call_module" or len(node.args) != 2:
            continue
        if not isinstance(graph_module.get_submodule(str(node.target)), SMHGenerator):
            continue
        name, _ = node.args
        node.args = (name,)
        if node.users:
            min(node.users, key=position.__getitem__).prepend(node)
        modified = True
    return modified
