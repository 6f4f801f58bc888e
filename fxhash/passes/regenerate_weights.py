"""Generate each weight that is still needed such that autograd doesn't keep it until backward."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fxhash.graph.liveness import is_changed_in_place
from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan, WeightUse
from fxhash.passes.contract import graph_pass
from fxhash.passes.nodes import FactorSource, planned, read, read_right
from fxhash.smh.regeneration import call_regenerating, generate_weight, name_of

# What returns a view of a tensor that it is given, for the most part.
_VIEWS = {
    *(operator.getitem, torch.transpose, torch.permute, torch.reshape, torch.flatten, torch.t, torch.unsqueeze),
    *(torch.squeeze, torch.chunk, torch.split, torch.unbind, torch.unflatten),
    *("t", "transpose", "permute", "view", "reshape", "flatten", "unsqueeze", "squeeze", "chunk", "split", "unbind"),
    *("unflatten", "expand", "contiguous", "view_as", "expand_as", "reshape_as", "float", "to"),
}


@graph_pass
def regenerate_weights(graph_module: fx.GraphModule, plan: LoweringPlan, factors: FactorSource) -> bool:
    """Replace the generator's calls by weights with a recipe, and let what reads them keep the recipe instead.

    Opaque submodules do so themselves with what they are given.
    """
    modified = False
    for use, readers in planned(graph_module.graph, plan):
        weight = next(node for node in readers[0].all_input_nodes if node.name == use.weight)
        if use.method is not Method.GENERATE or is_changed_in_place(weight):
            continue
        generated = _generated(graph_module, use, factors, weight)
        for reader in readers:
            reader.replace_input_with(weight, generated)
        for reader in _memory_readers(generated):
            name = name_of(reader)
            if name:
                reader.op, reader.target = "call_function", call_regenerating
                reader.args = (name, generated, *reader.args)
        modified = True
    return modified


def _memory_readers(weight: fx.Node) -> list[fx.Node]:
    """The nodes that read a weight or a view of it, without those that return views."""
    readers = []
    for user in weight.users:
        readers += _memory_readers(user) if user.target in _VIEWS else [user]
    return list(dict.fromkeys(readers))


def _generated(graph_module: fx.GraphModule, use: WeightUse, factors: FactorSource, before: fx.Node) -> fx.Node:
    """The node of a generated weight, before another node."""
    parameter = use.parameter
    is_separable = parameter.kernels > 0 and not use.split
    options: dict[str, Any] = {
        "kernels": read(graph_module, factors, use, "kernels", before) if is_separable else None,
        "shape": parameter.shape if is_separable else None,
        "shift": read(graph_module, factors, use, "shift", before) if use.stores("shift") else None,
        "dtype": use.cast,
    }
    left, right = read(graph_module, factors, use, "left", before), read_right(graph_module, factors, use, before)
    given = {name: value for name, value in options.items() if value is not None}
    with graph_module.graph.inserting_before(before):
        return graph_module.graph.call_function(generate_weight, (left, right, parameter.slice_shape), given)
