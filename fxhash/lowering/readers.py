"""What reads a weight: plain layers and attention, which can apply its factors, and everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxhash.capture.opaque import OpaqueModule
from fxhash.graph.layers import is_plain_layer_of
from fxhash.lowering.factored_modules import can_be_lowered, can_generate_parameters, can_take_factored
from fxhash.lowering.plan import Reader
from fxhash.lowering.weights import Weight
from fxhash.smh.generator import SMHGenerator

# Layers of torch that multiply by their matrices and do nothing else with them.
_ATTENTION = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
    nn.ModuleList,
    nn.Linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear,
    nn.LayerNorm,
)
_MAKE_ALIKE = ("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor")
_OF_FUNCTION: dict[Any, Reader] = {F.linear: Reader.LINEAR, F.embedding: Reader.EMBEDDING}
_OF_MODULE: dict[type[nn.Module], Reader] = {nn.Linear: Reader.LINEAR, nn.Embedding: Reader.EMBEDDING}


def reader_in_graph(graph_module: fx.GraphModule, weight: fx.Node, node: fx.Node) -> Reader:
    """What a node is to a weight that it reads."""
    if is_plain_layer_of(weight, node):
        return _OF_FUNCTION.get(node.target, Reader.CONVOLUTION)
    return Reader.ATTENTION if is_attention(graph_module, node) else Reader.OTHER


def asks_for_type(weight: fx.Node, node: fx.Node) -> bool:
    """Whether a node that reads a weight reads nothing of it but its type, or where it is."""
    if node.op == "call_function":
        return node.target is getattr and node.args[1] in ("dtype", "device", "is_cuda")
    first, *others = [*node.args, *node.kwargs.values()] or [None]
    if node.op != "call_method" or (first is weight) == (weight in others):
        return False
    return node.target in (_MAKE_ALIKE if first is weight else ("to", "type_as"))


def is_attention(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls attention of torch, which multiplies by its matrices and does nothing else with them."""
    called = opaque_module(graph_module, node)
    return called is not None and all(
        (type(module) in _ATTENTION or (_is_of_torch(module) and not module._parameters))
        and not (module._forward_pre_hooks or module._forward_hooks)
        for module in called.wrapped_module.modules()
    )


def opaque_module(graph_module: fx.GraphModule, node: fx.Node) -> OpaqueModule | None:
    """The opaque submodule that a node calls; None if it calls none."""
    called = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return called if isinstance(called, OpaqueModule) else None


def is_argument(call: fx.Node, node: fx.Node) -> bool:
    """Whether a node that calls an opaque submodule is given a weight as an argument, not just as a parameter."""
    _, *arguments = node.args
    found: list[fx.Node] = []
    fx.map_arg((arguments, dict(node.kwargs)), found.append)
    return call in found


def may_store(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls what may keep what it is given: a user's module, or a method such as a list's `append`."""
    if node.op == "call_method":
        return not hasattr(torch.Tensor, str(node.target))
    if node.op != "call_module":
        return False
    called = opaque_module(graph_module, node)
    module = graph_module.get_submodule(str(node.target)) if called is None else called.wrapped_module
    return not all(map(_is_of_torch, module.modules()))


def reader_in_opaque(called: OpaqueModule, names: tuple[str, ...], weight: Weight) -> Reader | None:
    """What computes a weight nested in an opaque submodule when it is called; None if nothing there can.

    Args:
        called: the opaque submodule.
        names: the parameter's names in the wrapped module, several if it is tied.
        weight: the weight.
    """
    owners = [(called.wrapped_module.get_submodule(path), name) for path, name in map(_split, names)]
    modules = [module for module, _ in owners]
    is_plain = weight.is_slice and not weight.has_shift
    if is_plain and all(can_be_lowered(module) and name == "weight" for module, name in owners):
        return _OF_MODULE.get(type(modules[0]), Reader.CONVOLUTION)
    # The wrapped module's own parameters are needed in each call of it anyway: the graph generates them, into scratch.
    if called.wrapped_module in modules or not all(map(can_generate_parameters, modules)):
        return None
    is_attended = is_plain and len(weight.shape) == 2 and all(map(can_take_factored, modules))
    return Reader.ATTENTION if is_attended else Reader.OTHER


def _split(name: str) -> tuple[str, str]:
    path, _, attribute = name.rpartition(".")
    return path, attribute


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def generator_calls(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes that are generated weights: calls of the generator, but for those that ask for `right`."""
    return [
        node
        for node in gm.graph.nodes
        if node.op == "call_module" and node.args and isinstance(gm.get_submodule(str(node.target)), SMHGenerator)
    ]
