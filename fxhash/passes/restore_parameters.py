"""Replace every call of the generator by a dense parameter that holds the generated values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from fxhash.capture.opaque import OpaqueModule
from fxhash.passes.contract import graph_pass
from fxhash.smh.generator import SMHGenerator


@graph_pass
def restore_parameters(graph_module: fx.GraphModule) -> bool:
    """Turn generated weights back into parameters under their original names.

    Opaque submodules get their parameters back too, and become the plain modules that they were: copies of these,
    which share buffers and all other parameters with the input.
    """
    dense: dict[str, nn.Parameter] = {}
    modified = False
    for node in list(graph_module.graph.nodes):
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, SMHGenerator):
            fqn = str(node.args[0])
            if fqn not in dense:
                with torch.no_grad():
                    dense[fqn] = nn.Parameter(module(fqn).clone(memory_format=torch.contiguous_format))
                _assign(graph_module, fqn, dense[fqn])
            with graph_module.graph.inserting_before(node):
                node.replace_all_uses_with(graph_module.graph.get_attr(fqn))
            modified = True
    for path, module in list(graph_module.named_modules()):
        if isinstance(module, OpaqueModule):
            modified |= _unwrap(graph_module, path, module)
    return modified


def _unwrap(graph_module: fx.GraphModule, path: str, opaque: OpaqueModule) -> bool:
    """Put the plain module back where it was; not where the graph collects `*args` or `**kwargs` for it."""
    calls = [node for node in graph_module.graph.nodes if node.op == "call_module" and node.target == path]
    if not calls or any(node.kwargs for node in calls):
        return False
    weights: tuple[fx.Node, ...] = calls[0].args[0]
    plain = opaque.unwrapped([graph_module.get_parameter(str(weight.target)) for weight in weights])
    place = path.rpartition(".")[0] or path
    for node in calls:
        _, node.args, node.kwargs = node.args
        node.target = place
    for name, module in graph_module.get_submodule(place).named_children():
        # What the rest of the graph calls of the same module, such as its training flag.
        if place != path and module is not opaque and not hasattr(plain, name):
            plain.add_module(name, module)
    graph_module.set_submodule(place, plain)
    return True


def tie_(graph_module: fx.GraphModule, aliases: Mapping[str, Sequence[str]]) -> None:
    """Give parameters their further names too, in place.

    A graph module keeps what its graph reads, so the graph reads these as well; nothing comes of it.

    Args:
        aliases: the further names of each parameter, by its first name; of those that are not there, none is given.
    """
    parameters = dict(graph_module.named_parameters(remove_duplicate=False))
    graph = graph_module.graph
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for name in sorted(aliases.keys() & parameters.keys()):
        for alias in (alias for alias in aliases[name] if alias not in parameters):
            _assign(graph_module, alias, parameters[name])
            with graph.inserting_before(first):
                graph.get_attr(alias)
    graph_module.recompile()


def _assign(graph_module: fx.GraphModule, fqn: str, parameter: nn.Parameter) -> None:
    *path, attribute = fqn.split(".")
    module: nn.Module = graph_module
    for name in path:
        if not hasattr(module, name):
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    module.register_parameter(attribute, parameter)
