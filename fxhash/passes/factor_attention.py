"""Pass attention its weights as factored tensors, which it multiplies by without materializing them."""

from __future__ import annotations

from torch import fx

from fxhash.lowering.factor_store import FactorStore
from fxhash.lowering.factored_attention import as_trained
from fxhash.lowering.factored_tensor import as_factored
from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan, Reader
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource, planned, read, read_right, weight_of


@graph_pass
def factor_attention(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Replace the weights of attention that the plan factors."""
    modified = False
    wrap = as_factored if isinstance(factors, FactorStore) else as_trained
    for use, (attention, *_) in planned(graph_module.graph, plan):
        if use.reader is not Reader.ATTENTION or use.method is not Method.FACTORED or use.module is not None:
            continue
        left = read(graph_module, factors, use, "left", before=attention)
        right = read_right(graph_module, factors, use, attention)
        with graph_module.graph.inserting_before(attention):
            factored = graph_module.graph.call_function(wrap, (left, right, use.shape))
        attention.replace_input_with(weight_of(use, attention), factored)
        modified = True
    return modified
