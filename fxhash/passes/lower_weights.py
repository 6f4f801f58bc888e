"""Replace calls of the generator by what is least work at each use: factors in turn, or the weight on demand."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, fx
from torch.nn import functional as F

from fxhash.dataflow import live_ranges
from fxhash.deployed import DeployedFactors, DeploymentPlan, LoweredUse, peak_of
from fxhash.factored import (
    conv_by_size,
    conv_in_turn,
    embedding_in_turn,
    linear_by_size,
    linear_in_turn,
    operations_in_turn,
    rows_per_channel,
)
from fxhash.generator import SMHGenerator
from fxhash.parts import free_name
from fxhash.passes.contract import graph_pass
from fxhash.passes.fold_batch_norm import batch_norm_after, folded_bias, norm_scale
from fxhash.plan import ParameterPlan
from fxhash.product import fits, generate


class _Layer(NamedTuple):
    """A function whose weight can be multiplied by in turn."""

    names: tuple[str, ...]
    in_turn: Callable[..., Tensor]
    by_size: Callable[..., Tensor] | None


_CONVOLUTION = _Layer(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), conv_in_turn, conv_by_size
)
_LAYERS: dict[Any, _Layer] = {
    F.linear: _Layer(("input", "weight", "bias"), linear_in_turn, linear_by_size),
    F.conv1d: _CONVOLUTION,
    F.conv2d: _CONVOLUTION,
    F.conv3d: _CONVOLUTION,
    F.embedding: _Layer(("input", "weight", "padding_idx", "max_norm"), embedding_in_turn, None),
}
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "max_norm": None}


@graph_pass
def lower_weights(graph_module: fx.GraphModule, keep: frozenset[str] = frozenset()) -> bool:
    """Lower every use of every generated weight, and fold batch norms into the factors.

    A linear layer, convolution or embedding whose weight fits the columns multiplies by the factors in turn where that
    is fewer operations. Any other use gets its weight generated right before the first use; it is freed after the last.

    Args:
        graph_module: a transformed model in eval mode, whose values are final. Batch norms that are folded are read.
        keep: names of parameters to generate now, once and for all.
    """
    calls = [
        node
        for node in graph_module.graph.nodes
        if node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), SMHGenerator)
    ]
    if not calls:
        return False
    generator = graph_module.get_submodule(str(calls[0].target))
    assert isinstance(generator, SMHGenerator)
    _Lowering(graph_module, generator).run(calls, keep)
    return True


class _Lowering:
    def __init__(self, graph_module: fx.GraphModule, generator: SMHGenerator) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self.generator = generator
        self.factors = DeployedFactors(generator.plan, generator.right.detach())
        self.name = free_name(graph_module, "smh_factors")
        graph_module.add_submodule(self.name, self.factors)
        self.uses: dict[fx.Node, LoweredUse] = {}
        self.position = {node: index for index, node in enumerate(graph_module.graph.nodes)}

    def run(self, calls: list[fx.Node], keep: frozenset[str]) -> None:
        for call in calls:
            fqn = str(call.args[0])
            if fqn in keep:
                self._keep(call, fqn)
                continue
            for user in list(call.users):
                self._lower_layer(call, fqn, user)
            if call.users:
                self._generate(call, fqn)
            self.graph.erase_node(call)
        self._share_right()
        self.factors.plan = self._plan()

    def _keep(self, call: fx.Node, fqn: str) -> None:
        weight = self.generator(fqn).detach()
        with self.graph.inserting_before(call):
            kept = self.graph.call_module(self.name, (self.factors.store(fqn, weight),))
        call.replace_all_uses_with(kept)
        for user in kept.users:
            self.uses[user] = LoweredUse(user.name, fqn, "keep", weight.numel() * weight.element_size())
        self.graph.erase_node(call)

    def _lower_layer(self, call: fx.Node, fqn: str, user: fx.Node) -> None:
        """Let a layer multiply in turn, if it can and should; fold the batch norm after it, if there is one."""
        parameter, left, shift = self._values(fqn)
        layer = _LAYERS.get(user.target)
        arguments = _bind(layer, user) if layer is not None else {}
        if layer is None or shift is not None or not self._may_be_factored(call, user, arguments, parameter):
            return
        cols = self.factors.right.shape[1]
        in_turn, dense = operations_in_turn(parameter.shape, left.shape[1], cols), parameter.numel
        if user.target is F.embedding:
            in_turn, dense = left.shape[1] * parameter.shape[1], 0
        work = parameter.numel * left.shape[1]
        norm = batch_norm_after(self.graph_module, user)
        channel_rows = rows_per_channel(parameter.shape, cols)
        bias = arguments.get("bias")
        folded = ""
        if norm is not None and channel_rows is not None and self._is_constant(bias):
            left = left * norm_scale(norm.module).repeat_interleave(channel_rows).unsqueeze(1).to(left)
            bias = self._store(user, f"{fqn}, bias", folded_bias(norm.module, self._constant(bias)))
            folded = norm.node.name
            norm.node.replace_all_uses_with(user)
            self.graph.erase_node(norm.node)
        most = _most_positions(in_turn, dense, work) if layer.by_size is not None else None
        with self.graph.inserting_before(user):
            left_node = self._store(user, fqn, left)
            right = self._right()
            args: tuple[Any, ...] = (arguments["input"], left_node, right, parameter.shape)
            if user.target is not F.embedding:
                args = (*args, bias)
            args = (*args, *(arguments[name] for name in ("stride", "padding", "dilation") if name in arguments))
            if most is None or layer.by_size is None:
                lowered = self.graph.call_function(layer.in_turn, args)
            else:
                lowered = self.graph.call_function(layer.by_size, (*args, most))
        self.position[lowered] = self.position[user]
        user.replace_all_uses_with(lowered)
        self.graph.erase_node(user)
        size = 0 if most is None else self._generated_bytes(left)
        method = "in turn" if most is None else "by size"
        self.uses[lowered] = LoweredUse(lowered.name, fqn, method, size, work if size else 0, in_turn, dense, folded)

    def _may_be_factored(
        self, call: fx.Node, user: fx.Node, arguments: dict[str, Any], parameter: ParameterPlan
    ) -> bool:
        others = [value for name, value in arguments.items() if name != "weight"]
        return (
            arguments["weight"] is call
            and call not in others
            and arguments.get("groups", 1) == 1
            and arguments.get("max_norm") is None
            and len(parameter.shape) >= 2
            and fits(parameter.shape, self.factors.right.shape[1])
            and self.generator.dtype_of(parameter) == self.factors.right.dtype
        )

    def _generate(self, call: fx.Node, fqn: str) -> None:
        """Generate the weight right before its first remaining use."""
        parameter, left, shift = self._values(fqn)
        with self.graph.inserting_before(min(call.users, key=self.position.__getitem__)):
            left_node = self._store(call, fqn, left)
            weight = self.graph.call_function(generate, (left_node, self._right(), parameter.shape))
            if shift is not None:
                weight = self.graph.call_function(operator.add, (weight, shift))
            dtype = self.generator.dtype_of(parameter)
            if dtype != self.factors.right.dtype:
                weight = self.graph.call_method("to", (weight, dtype))
        call.replace_all_uses_with(weight)
        size = self._generated_bytes(left)
        self.uses[weight] = LoweredUse(weight.name, fqn, "generate", size, parameter.numel * left.shape[1])

    def _values(self, fqn: str) -> tuple[ParameterPlan, Tensor, float | None]:
        index, parameter = self.generator._hashed[fqn]
        return parameter, self.generator.scaled_left(fqn).detach(), self.generator.shifts[index].item() or None

    def _generated_bytes(self, left: Tensor) -> int:
        return left.shape[0] * self.factors.right.shape[1] * left.element_size()

    def _store(self, before: fx.Node, key: str, tensor: Tensor) -> fx.Node:
        with self.graph.inserting_before(before):
            return self.graph.call_module(self.name, (self.factors.store(key, tensor),))

    def _right(self) -> fx.Node:
        return self.graph.call_module(self.name, ())

    def _share_right(self) -> None:
        """One node for `right`, before the first that uses it."""
        first, *others = [node for node in self.graph.nodes if node.target == self.name and not node.args] or [None]
        for node in others:
            node.replace_all_uses_with(first)
            self.graph.erase_node(node)

    def _is_constant(self, value: Any) -> bool:
        return value is None or (isinstance(value, fx.Node) and value.op == "get_attr")

    def _constant(self, value: fx.Node | None) -> Tensor | None:
        return None if value is None else operator.attrgetter(str(value.target))(self.graph_module).detach()

    def _plan(self) -> DeploymentPlan:
        position = {node: index for index, node in enumerate(self.graph.nodes)}
        generated = {node for node, use in self.uses.items() if use.method == "generate"}
        live = {node: (position[node], position[node]) for node in self.uses} | live_ranges(self.graph, generated)
        uses = tuple(replace(self.uses[node], live=live[node]) for node in sorted(self.uses, key=position.__getitem__))
        kept = {use.fqn: use.weight_bytes for use in uses if use.method == "keep"}
        tensors = [self.factors.right, *self.factors.tensors]
        factor_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors) - sum(kept.values())
        return DeploymentPlan(uses, peak_of(uses), factor_bytes)


def _bind(layer: _Layer, node: fx.Node) -> dict[str, Any]:
    given = dict(zip(layer.names, node.args, strict=False)) | dict(node.kwargs)
    return {name: given.get(name, _DEFAULTS.get(name)) for name in layer.names}


def _most_positions(in_turn: int, dense: int, generating: int) -> int | None:
    """Up to how many positions multiplying in turn is less work than generating and multiplying; None if always."""
    return None if in_turn <= dense else generating // (in_turn - dense)
