"""Replace every hashed parameter's `get_attr` node by a call of one shared generator."""

from __future__ import annotations

from torch import fx
from torch.nn import functional as F

from fxhash.graph.names import CAPTURED, free_name
from fxhash.passes.contract import graph_pass
from fxhash.smh.generator import SMHGenerator


@graph_pass
def hash_parameters(graph_module: fx.GraphModule, generator: SMHGenerator) -> bool:
    """Let `generator` stand for the parameters that its plan hashes.

    Each parameter is one call of the generator, however many nodes use it.
    """
    hashed = {parameter.fqn for parameter in generator.plan.hashed}
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and node.target in hashed:
            nodes.setdefault(str(node.target), []).append(node)
    if not nodes:
        return False
    generator.captured = graph_module.meta.get(CAPTURED, generator.captured)
    name = free_name(graph_module, "smh_generator")
    graph_module.add_submodule(name, generator)
    for fqn, same in nodes.items():
        with graph_module.graph.inserting_before(same[0]):
            weight = graph_module.graph.call_module(name, (fqn,))
        for node in same:
            for user in list(node.users):
                _ask_for_dense_gradient(user)
            node.replace_all_uses_with(weight)
    return True


def _ask_for_dense_gradient(user: fx.Node) -> None:
    """A generated weight has no sparse gradient: the factors' gradient is dense whatever the rows that were read."""
    if user.target in (F.embedding, F.embedding_bag) and "sparse" in user.kwargs:
        user.kwargs = {**user.kwargs, "sparse": False}
