"""Take a program of `torch.export` as a graph of torch's own functions, whose parameters are `get_attr` nodes."""

from __future__ import annotations

from operator import attrgetter, getitem
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.graph import _PyTreeCodeGen
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from fxhash.capture.assembly import assemble, detached
from fxhash.capture.copy_model import copy_model
from fxhash.capture.leaf_modules import FlattenedInput, RestoredStructure, TensorConstant
from fxhash.graph.arguments import all_arguments, training_argument
from fxhash.graph.names import free_name
from fxhash.smh.parameters import tied_groups

Model: TypeAlias = nn.Module | ExportedProgram

aten = torch.ops.aten
# Operators that the passes know as functions of torch. All others stay as they are.
_SAME_ARGUMENTS: dict[Any, Any] = {
    aten.linear.default: F.linear,
    aten.conv1d.default: F.conv1d,
    aten.conv1d.padding: F.conv1d,
    aten.conv2d.default: F.conv2d,
    aten.conv2d.padding: F.conv2d,
    aten.conv3d.default: F.conv3d,
    aten.conv3d.padding: F.conv3d,
    aten.dropout.default: F.dropout,
}


def as_module(model: Model) -> nn.Module:
    """An exported program as the module that runs it; any other model as it is."""
    return model.module() if isinstance(model, ExportedProgram) else model


def is_exported(model: fx.GraphModule) -> bool:
    """Whether a graph module is what `ExportedProgram.module()` returns."""
    operators = any(isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes)
    return operators and isinstance(model.graph._codegen, _PyTreeCodeGen)


def capture_exported(model: fx.GraphModule, exposed: set[str]) -> fx.GraphModule:
    """The graph of an exported program, with the calling convention of the model that was exported.

    Linear layers, convolutions, embeddings, batch norms and dropout become the functions of `torch.nn.functional` that
    they were before. Checks of the inputs are left out.

    Args:
        model: what `ExportedProgram.module()` returns; it is left untouched.
        exposed: fully qualified names of the parameters whose values the result shares with `model`.
    """
    root = copy_model(model, shared=exposed)
    assert isinstance(root, fx.GraphModule)
    first_names = {name: names[0] for names, _ in tied_groups(root) for name in names}
    persistent = root.state_dict().keys()
    attributes: dict[str, Any] = {}
    graph = fx.Graph()
    nodes = _placeholders(root, graph, attributes)
    for node in root.graph.nodes:
        if node.op == "get_attr" and node.users:
            target = first_names.get(node.target, node.target)
            attributes[target] = value = attrgetter(target)(root)
            if isinstance(value, Tensor) and target not in first_names and target not in persistent:
                attributes[target] = TensorConstant(value, fresh=False)
                nodes[node] = graph.call_module(target)
            else:
                nodes[node] = graph.get_attr(target)
        elif node.op == "output":
            (leaves,) = node.args
            graph.output(_result(root, graph, attributes, fx.map_arg(list(leaves), nodes.__getitem__)))
        elif node.op not in ("placeholder", "get_attr") and _is_kept(node):
            nodes[node] = graph.node_copy(node, nodes.__getitem__)
            _as_function(nodes[node])
            if node.op == "call_module":
                attributes[node.target] = root.get_submodule(node.target)
    result = assemble(model, detached(graph), attributes, "taken over from an exported program")
    # An exported program has no mode; its dropouts and batch norms have one each. Where one is off, it is evaluation.
    modes = [argument[1] for node in graph.nodes if (argument := training_argument(node)) is not None]
    return result.train(all(modes))


def _placeholders(root: fx.GraphModule, graph: fx.Graph, attributes: dict[str, Any]) -> dict[fx.Node, fx.Node]:
    """Declare the arguments of the model that was exported; gives what stands for each input of its flat graph."""
    codegen = root.graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    inputs = [node for node in root.graph.nodes if node.op == "placeholder"]
    # Where each leaf of the arguments comes in the flat graph.
    args, kwargs = tree_unflatten(range(len(inputs)), codegen.pytree_info.in_spec)
    arguments = [*args, *kwargs.values()]
    placeholders = [graph.placeholder(name) for name in codegen.pytree_info.orig_args]
    nodes: dict[fx.Node, fx.Node] = {}
    for placeholder, argument in zip(placeholders, arguments, strict=True):
        leaves, spec = tree_flatten(argument)
        if argument in leaves:
            nodes[inputs[argument]] = placeholder
        elif leaves:
            name = free_name(root, f"flattened_{placeholder.name}")
            attributes[name] = FlattenedInput(placeholder.name, spec)
            flat = graph.call_module(name, (placeholder,))
            nodes |= {inputs[leaf]: graph.call_function(getitem, (flat, i)) for i, leaf in enumerate(leaves)}
    return nodes


def _result(root: fx.GraphModule, graph: fx.Graph, attributes: dict[str, Any], leaves: list[Any]) -> Any:
    """What the model that was exported returns, made of the flat list that its graph returns."""
    codegen = root.graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    spec = codegen.pytree_info.out_spec
    if spec is None:
        return leaves
    result = tree_unflatten(leaves, spec)
    if _is_plain(result):
        return result
    name = free_name(root, "restored_output")
    attributes[name] = RestoredStructure(spec)
    return graph.call_module(name, (leaves,))


def _is_plain(value: Any) -> bool:
    """Whether a graph can return it: tuples, lists and dictionaries of nodes and constants."""
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (fx.Node, bool, int, float, str))


def _as_function(node: fx.Node) -> None:
    """Let a node call the function of `torch.nn.functional` that its operator stands for."""
    if node.target in _SAME_ARGUMENTS:
        node.target = _SAME_ARGUMENTS[node.target]
    elif node.target is aten.embedding.default:
        weight, indices, padding, by_frequency, sparse = all_arguments(node).values()
        node.target, node.args = F.embedding, (indices, weight, None if padding < 0 else padding)
        node.kwargs = {"scale_grad_by_freq": by_frequency, "sparse": sparse}
    elif node.target is aten.batch_norm.default:
        x, weight, bias, mean, variance, training, momentum, eps, _ = all_arguments(node).values()
        node.target, node.args, node.kwargs = (
            F.batch_norm,
            (x, mean, variance, weight, bias, training, momentum, eps),
            {},
        )


def _is_kept(node: fx.Node) -> bool:
    """Not the checks of inputs, and not the counting of batches, which nothing reads and evaluation must not do."""
    counted = node.args[0] if node.target is aten.add_.Tensor else None
    return not (
        (node.op == "call_module" and node.target == "_guards_fn")
        or (isinstance(counted, fx.Node) and str(counted.target).endswith("num_batches_tracked"))
    )
