"""Let generated weights share scratch memory, in the slots that the plan assigns."""

from __future__ import annotations

import operator

from torch import fx

from fxhash.graph.names import free_name
from fxhash.lowering.factor_store import FactorStore
from fxhash.lowering.plan import LoweringPlan
from fxhash.lowering.scratch import ScratchSlots
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import USE, read_like


@graph_pass
def share_scratch(graph_module: fx.GraphModule, plan: LoweringPlan, store: FactorStore) -> bool:
    """Borrow the slots before the first weight, and give them back at the end."""
    graph = graph_module.graph
    generating = [
        (node, slot)
        for node in graph.nodes
        if USE in node.meta and (slot := node.meta[USE].slot) is not None and "scratch" not in node.kwargs
    ]
    if not generating:
        return False
    path = free_name(graph_module, "smh_scratch")
    element_size = store.dtype.itemsize
    graph_module.add_submodule(path, ScratchSlots(tuple(size // element_size for size in plan.slot_bytes)))
    like = read_like(graph_module, store)
    with graph.inserting_after(like):
        borrowed = graph.call_module(path, (like,))
    slots: dict[int, fx.Node] = {}
    for node, slot in generating:
        if slot not in slots:
            with graph.inserting_before(node):
                slots[slot] = graph.call_function(operator.getitem, (borrowed, slot))
        node.update_kwarg("scratch", slots[slot])
    with graph.inserting_before(next(iter(reversed(graph.nodes)))):
        graph.call_module(path, (like, borrowed))
    return True
