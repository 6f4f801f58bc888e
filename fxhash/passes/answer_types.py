"""Answer what asks for the type or the device of a weight, and nothing else of it."""

from __future__ import annotations

from torch import fx

from fxhash.lowering.plan import LoweringPlan
from fxhash.lowering.readers import asks_for_type, generator_calls
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource, read_like
from fxhash.smh.generator import SMHGenerator


@graph_pass
def answer_types(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Let it ask the factors, for which no weight is generated."""
    modified = False
    for call in generator_calls(graph_module):
        generator = graph_module.get_submodule(str(call.target))
        assert isinstance(generator, SMHGenerator)
        dtype = generator.dtype_of(generator.parameter(str(call.args[0])))
        for node in [user for user in call.users if asks_for_type(call, user)]:
            like = read_like(graph_module, factors)
            if dtype != generator.right.dtype:
                with graph_module.graph.inserting_before(node):
                    like = graph_module.graph.call_method("to", (like, dtype))
            node.replace_input_with(call, like)
            modified = True
    return modified
