"""Let modules nested in opaque submodules compute their weights themselves, when they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from fxhash.capture.opaque import OpaqueModule
from fxhash.lowering.factor_store import FactorStore
from fxhash.lowering.factored_modules import WeightSource, generate_parameters, lower_layer
from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan, Reader, WeightUse
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import planned, read_like


@graph_pass
def lower_opaque_modules(graph_module: fx.GraphModule, plan: LoweringPlan, store: FactorStore) -> bool:
    """Replace the nested modules that the plan names, in each opaque submodule."""
    uses: dict[str, dict[str, WeightUse]] = {}
    callers: dict[str, dict[fx.Node, None]] = {}
    for use, (caller, *_) in planned(graph_module.graph, plan):
        if use.module is not None:
            uses.setdefault(str(caller.target), {})[use.weight] = use
            callers.setdefault(str(caller.target), {})[caller] = None
    for target, of_weight in uses.items():
        called = graph_module.get_submodule(target)
        assert isinstance(called, OpaqueModule)
        _lower(graph_module, target, called, of_weight, list(callers[target]), store)
    return bool(uses)


def _lower(
    graph_module: fx.GraphModule,
    target: str,
    called: OpaqueModule,
    uses: dict[str, WeightUse],
    callers: Sequence[fx.Node],
    store: FactorStore,
) -> None:
    layers: dict[nn.Module, nn.Module] = {}
    generating: dict[nn.Module, dict[str, WeightSource]] = {}
    remaining: list[tuple[fx.Node, tuple[str, ...]]] = []
    parameters: Any = callers[0].args[0]
    for weight, names in zip(parameters, called.names, strict=True):
        use = uses.get(weight.name)
        if use is None:
            remaining.append((weight, names))
            continue
        source = _source(use, store)
        for name in names:
            path, _, attribute = name.rpartition(".")
            owner = called.wrapped_module.get_submodule(path)
            if use.reader.is_plain_layer:
                max_positions = use.costs.max_positions if use.method is Method.ADAPTIVE else 0
                layers[owner] = lower_layer(owner, source, use.method, max_positions)
            else:
                generating.setdefault(owner, {})[attribute] = source
    layers |= {owner: generate_parameters(layers.get(owner, owner), sources) for owner, sources in generating.items()}
    # The factors are one more value that the submodule is given: under no name, but the graph shows that it needs them.
    names_left = [*(names for _, names in remaining), ()]
    graph_module.set_submodule(target, called.replacing(layers, names_left))
    like = read_like(graph_module, store)
    for caller in callers:
        caller.update_arg(0, (*(weight for weight, _ in remaining), like))


def _source(use: WeightUse, store: FactorStore) -> WeightSource:
    return WeightSource(
        factors=store,
        key=use.key("left"),
        shape=use.shape,
        shift_key=use.key("shift") if use.stores("shift") else "",
        dtype=use.cast,
        is_factored=use.method is Method.FACTORED and use.reader is Reader.ATTENTION,
        fqn=use.fqn,
    )
