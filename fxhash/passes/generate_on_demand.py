"""Generate each weight right before its first use."""

from __future__ import annotations

from torch import fx

from fxhash.generator import SMHGenerator
from fxhash.passes.contract import graph_pass


@graph_pass
def generate_on_demand(graph_module: fx.GraphModule) -> bool:
    """Move each call of the generator to right before the first node that uses its weight.

    The code that `torch.fx` writes for a graph frees every value after its last use, so at any time only those
    weights exist that are in use.
    """
    position = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    generated = [
        node
        for node in graph_module.graph.nodes
        if node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), SMHGenerator)
    ]
    before = list(graph_module.graph.nodes)
    for node in generated:
        min(node.users, key=position.__getitem__).prepend(node)
    return list(graph_module.graph.nodes) != before
