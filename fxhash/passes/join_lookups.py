"""Let tables that are looked up next to each other be so in one call."""

from __future__ import annotations

import operator

from torch import fx

from fxhash.lowering.factor_store import FactorStore
from fxhash.lowering.input_check import checked_input
from fxhash.lowering.lookup import factored_embedding, factored_embeddings
from fxhash.lowering.plan import LoweringPlan
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource
from fxhash.smh.generator import SMHGenerator

# What may stand between lookups that are joined: it changes no index that was looked up before.
_CHANGE_NOTHING = {operator.getitem, checked_input, factored_embedding}


@graph_pass
def join_lookups(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Replace the lookups of several tables, of as many columns each, by a single call."""
    modified = False
    lookups: list[fx.Node] = []
    for node in [*graph_module.graph.nodes]:
        reads_one = any(each in lookups for each in node.all_input_nodes)
        if reads_one or not _changes_nothing(graph_module, node):
            modified |= _join(graph_module, lookups)
            lookups = []
        if _has_segments(node, factors) and (not lookups or _size(node) == _size(lookups[0])):
            lookups.append(node)
    return modified


def _join(graph_module: fx.GraphModule, lookups: list[fx.Node]) -> bool:
    if len(lookups) < 2:
        return False
    indices, lefts, rights, shapes = zip(*(node.args for node in lookups), strict=True)
    with graph_module.graph.inserting_before(lookups[-1]):
        joined = graph_module.graph.call_function(
            factored_embeddings, (rights[0], list(indices), list(lefts), list(shapes))
        )
    # The nodes stay, and so do their names, of which the summary speaks.
    for index, node in reversed([*enumerate(lookups)]):
        joined.append(node)
        node.target, node.args = operator.getitem, (joined, index)
    return True


def _has_segments(node: fx.Node, factors: FactorSource) -> bool:
    """Whether a node looks up segments of rows of `W`, of factors in floating point."""
    return (
        node.target is factored_embedding
        and isinstance(factors, FactorStore)
        and len(node.args) == 4
        and factors.right.shape[1] > _size(node)
    )


def _size(lookup: fx.Node) -> int:
    shape = lookup.args[3]
    assert isinstance(shape, tuple)
    size = shape[1]
    assert isinstance(size, int)
    return size


def _changes_nothing(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), FactorStore | SMHGenerator)
    return node.op in ("placeholder", "get_attr") or node.target in _CHANGE_NOTHING
