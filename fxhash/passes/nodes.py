"""What the passes of lowering share: they find nodes by the plan's names, and read what the factor store holds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxhash.graph.names import free_name
from fxhash.lowering.factor_store import LIKE, FactorStore
from fxhash.lowering.functional import scale_channels
from fxhash.lowering.plan import LoweringPlan, WeightUse
from fxhash.smh.factor_bits import FactorBits
from fxhash.smh.generator import SMHGenerator

# Where a lowered model reads its factors: what was computed of them, or, to train them, the generator itself.
FactorSource = FactorStore | SMHGenerator

# Where the `meta` of a node that generates a weight has its use, between passes.
USE = "fxhash.use"


def planned(graph: fx.Graph, plan: LoweringPlan) -> Iterator[tuple[WeightUse, list[fx.Node]]]:
    """The uses whose weight a graph still generates as it was transformed, with the nodes that read it."""
    nodes = {node.name: node for node in graph.nodes}
    for use in plan.uses:
        weight = nodes.get(use.weight)
        readers = [nodes[name] for name in use.readers if name in nodes]
        if weight is not None and readers and _reads(readers[0], weight):
            yield use, readers


def weight_of(use: WeightUse, reader: fx.Node) -> fx.Node:
    """The node that a reader takes for its weight: the generated one, or that with a batch norm's scale folded in."""
    return next(node for node in reader.all_input_nodes if _is_or_scales(node, use.weight))


def read(
    graph_module: fx.GraphModule,
    factors: FactorSource,
    use: WeightUse,
    role: str,
    before: fx.Node,
    is_widened: bool = True,
) -> fx.Node:
    """A node that reads what belongs to a use, before another node.

    Args:
        graph_module: whose graph gets the node.
        factors: where to read it.
        use: the use.
        role: as of `StoredTensor`.
        before: the other node.
        is_widened: whether to read what is stored as integers in floating point.
    """
    arguments = (use.key(role),) if isinstance(factors, FactorStore) else (use.fqn, role)
    path = _path_of(graph_module, factors)
    with graph_module.graph.inserting_before(before):
        return graph_module.graph.call_module(path, arguments, {} if is_widened else {"is_widened": False})


def read_right(graph_module: fx.GraphModule, factors: FactorSource, use: WeightUse, before: fx.Node) -> fx.Node:
    """A node that reads `right`: one for all uses, behind the inputs, or before another node where it is widened."""
    if factors_in_bits(factors) is None:
        return _read_once(graph_module, factors, ())
    path = _path_of(graph_module, factors)
    with graph_module.graph.inserting_before(before):
        return graph_module.graph.call_module(path, (None, use.parameter.full_rank))


def read_like(graph_module: fx.GraphModule, factors: FactorSource) -> fx.Node:
    """The one node that reads something of the type and on the device of the factors, behind the inputs."""
    return _read_once(graph_module, factors, () if factors_in_bits(factors) is None else (LIKE,))


def factors_in_bits(factors: FactorSource) -> FactorBits | None:
    """As which integers factors are stored; None if they are in floating point."""
    return factors.plan.factor_bits if isinstance(factors, FactorStore) else None


def _read_once(graph_module: fx.GraphModule, factors: FactorSource, arguments: tuple[str, ...]) -> fx.Node:
    path = _path_of(graph_module, factors)
    for node in graph_module.graph.nodes:
        if node.target == path and node.args == arguments:
            return node
    first = next(node for node in graph_module.graph.nodes if node.op != "placeholder")
    with graph_module.graph.inserting_before(first):
        return graph_module.graph.call_module(path, arguments)


def _path_of(graph_module: fx.GraphModule, factors: FactorSource) -> str:
    path = next((name for name, child in graph_module._modules.items() if child is factors), None)
    if path is None:
        path = free_name(graph_module, "smh_factors" if isinstance(factors, FactorStore) else "smh_generator")
        graph_module.add_submodule(path, factors)
    return path


def _reads(reader: fx.Node, weight: fx.Node) -> bool:
    return any(_is_or_scales(node, weight.name) for node in reader.all_input_nodes)


def _is_or_scales(node: fx.Node, weight: str) -> bool:
    return node.name == weight or (node.target is scale_channels and node.all_input_nodes[0].name == weight)
