"""What the result of a call may share memory with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from fxhash.graph.in_place import add_
from fxhash.graph.sharing import shared_inputs
from fxhash.lowering.functional import factored_linear
from fxhash.smh.regeneration import call_regenerating

X, W = torch.randn(4, 4), torch.randn(4, 4)


@fx.wrap
def first_of(w, x):
    return w


# Each with what its result may share memory with.
CALLS = [
    (lambda w, x: torch.add(w, x), ""),
    (lambda w, x: w + x, ""),
    (lambda w, x: x @ w, ""),
    (lambda w, x: x.mm(w), ""),
    (lambda w, x: x.matmul(w), ""),
    (lambda w, x: torch.addmm(x, w, w), ""),
    (lambda w, x: torch.baddbmm(x[None], w[None], w[None]), ""),
    (lambda w, x: torch.einsum("ij,jk->ik", x, w), ""),
    (lambda w, x: F.layer_norm(x, (4, 4), w), ""),
    (lambda w, x: F.scaled_dot_product_attention(w, x, x), ""),
    (lambda w, x: F.softmax(w, 1), ""),
    (lambda w, x: w.norm(dim=1, keepdim=True), ""),
    (lambda w, x: w.std(dim=1), ""),
    (lambda w, x: w.abs(), ""),
    (lambda w, x: w.clone(), ""),
    (lambda w, x: F.relu(w), ""),
    (lambda w, x: F.linear(x, w), ""),
    (lambda w, x: F.embedding(x.argmax(1), w), ""),
    (lambda w, x: torch.stack([w, x]), ""),
    (lambda w, x: torch.where(x > 0, w, x), ""),
    (lambda w, x: w.view(-1), "w"),
    (lambda w, x: w.reshape(2, 8), "w"),
    (lambda w, x: w.t(), "w"),
    (lambda w, x: w[1:], "w"),
    (lambda w, x: w.to(torch.float32), "w"),
    (lambda w, x: w.float(), "w"),
    (lambda w, x: w.contiguous(), "w"),
    (lambda w, x: w.detach(), "w"),
    (lambda w, x: w.data, "w"),
    (lambda w, x: w.chunk(2), "w"),
    (lambda w, x: torch.chunk(w, 2), "w"),
    (lambda w, x: torch.einsum("ij->ji", w), "w"),
    (lambda w, x: F.dropout(w, 0.5, False), "w"),
    (lambda w, x: F.dropout2d(w[None, None], 0.5, False), "w"),
    (lambda w, x: F.relu(w, inplace=True), "w"),
    (lambda w, x: w.relu_(), "w"),
    (lambda w, x: w.type_as(x), "wx"),
    (lambda w, x: w.sum_to_size(4, 4), "w"),
    (lambda w, x: torch.atleast_1d(w), "w"),
    (lambda w, x: torch.broadcast_tensors(w, x), "wx"),
    (lambda w, x: torch.add(w, 1, out=x), "wx"),
    (lambda w, x: x.add_(w), "x"),
    (lambda w, x: add_(x, w), "x"),
    (lambda w, x: torch.ops.aten.mul_.Tensor(x, w), "x"),
    (lambda w, x: torch.ops.aten.mul.Tensor(x, w), ""),
    (lambda w, x: torch.ops.aten.view.default(w, [16]), "w"),
    (lambda w, x: first_of(w, x), "wx"),
]


@pytest.mark.parametrize(("function", "expected"), CALLS)
def test_what_a_result_may_share(function, expected):
    """As expected; and whatever it does share is among it."""
    graph = fx.Tracer().trace(function)
    w, x, *_, output = graph.nodes
    sources, seen = tree_leaves(output.args), set()
    while sources:
        node = sources.pop()
        if node not in seen:
            seen.add(node)
            sources += shared_inputs(node)
    assert {node for node in seen if node.op == "placeholder"} == {{"w": w, "x": x}[name] for name in expected}

    inputs = {"w": W.clone(), "x": X.clone()}
    result = fx.GraphModule(torch.nn.Module(), graph)(*inputs.values())
    storages = {each.untyped_storage().data_ptr() for each in tree_leaves(result) if isinstance(each, Tensor)}
    assert {name for name, value in inputs.items() if value.untyped_storage().data_ptr() in storages} <= set(expected)


def test_layers_that_compute_what_they_return():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4, 4))
    model[4].register_forward_hook(lambda *_: None)
    layers = [node for node in fx.symbolic_trace(model).graph.nodes if node.op == "call_module"]
    assert [bool(shared_inputs(each)) for each in layers] == [False, False, True, True, True]


def test_functions_of_ours():
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    layer = graph.call_function(call_regenerating, ("torch.nn.functional.linear", weight, x, weight))
    other = graph.call_function(call_regenerating, (".chunk", weight, weight, 2))
    factored = graph.call_function(factored_linear, (x, weight, weight, (4, 4)))
    assert [shared_inputs(each) for each in (layer, other, factored)] == [[], [weight], []]


def test_layers_and_unknown_methods_may_return_any_input():
    graph = fx.Graph()
    items, value = graph.placeholder("items"), graph.placeholder("value")
    calls = [
        graph.call_method("append", (items, value)),
        graph.call_method("copy", (items,)),
        graph.call_module("layer", (value,)),
    ]
    assert [shared_inputs(each) for each in calls] == [[items, value], [items], [value]]
