"""What all passes share: the input is left untouched, and one place cleans up and checks the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Concatenate, Generic, ParamSpec

from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

from fxhash.capture.leaf_modules import TensorConstant, TrainingFlag
from fxhash.lowering.factor_store import FactorStore
from fxhash.lowering.functional import scale_channels
from fxhash.smh.generator import SMHGenerator

Arguments = ParamSpec("Arguments")
Rewrite = Callable[Concatenate[fx.GraphModule, Arguments], bool]

# Calls of these have no side effect, nor has the scaling that a folded batch norm leaves. Whatever else a user's graph
# calls, such as an in-place update of a buffer, stays although nobody reads its result.
_REMOVABLE_MODULES = (SMHGenerator, FactorStore, TensorConstant, TrainingFlag)


class GraphPass(Generic[Arguments]):
    """A pass made of a function that rewrites a graph module in place and says whether it changed anything.

    The pass works on a copy of the graph, which shares modules and parameters with the input. Afterwards it removes
    what nobody reads any more (nodes, then parameters and modules), lints, recompiles, and checks that the calling
    convention is unchanged.

    Attributes:
        rewrite: the function.
    """

    def __init__(self, rewrite: Rewrite[Arguments]) -> None:
        self.rewrite = rewrite
        update_wrapper(self, rewrite)

    def __call__(self, given: fx.GraphModule, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> PassResult:
        """Run the pass over a graph module, which is left untouched."""
        working = _with_graph(given, given.graph)
        if not self.rewrite(working, *args, **kwargs):
            return PassResult(given, False)
        working.graph.eliminate_dead_code(lambda node: not _is_removable(working, node))
        working.graph.lint()
        result = _with_graph(working, working.graph)
        assert _calling_convention(result) == _calling_convention(given), "a pass changed the inputs"
        return PassResult(result, True)


def graph_pass(rewrite: Rewrite[Arguments]) -> GraphPass[Arguments]:
    """Decorate a function that rewrites a graph module in place, as a `GraphPass`."""
    return GraphPass(rewrite)


def in_sequence(passes: Sequence[GraphPass[Arguments]]) -> GraphPass[Arguments]:
    """Several passes as one, which copies, cleans up and checks once."""

    def rewrite(graph_module: fx.GraphModule, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> bool:
        modified = [each.rewrite(graph_module, *args, **kwargs) for each in passes]
        return any(modified)

    return GraphPass(rewrite)


def _with_graph(graph_module: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """A graph module with a copy of `graph` and only those attributes of `graph_module` that it refers to."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, val_map={}))
    result = fx.GraphModule(graph_module, copied, class_name=type(graph_module).__name__)
    result.meta = dict(graph_module.meta)
    return result


def _is_removable(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), _REMOVABLE_MODULES)
    return node.op == "get_attr" or node.target is scale_channels


def _calling_convention(graph_module: fx.GraphModule) -> list[tuple[object, ...]]:
    return [(node.target, *node.args) for node in graph_module.graph.nodes if node.op == "placeholder"]
