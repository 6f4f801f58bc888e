"""Replace calls of the generator by what is least work at each use: factors in turn, or the weight on demand."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxhash.capture.opaque import OpaqueModule
from fxhash.errors import PlanError
from fxhash.graph.arguments import all_arguments, set_argument
from fxhash.graph.layers import is_weight_of_layer
from fxhash.graph.liveness import is_changed_in_place, live_ranges
from fxhash.graph.names import free_name
from fxhash.lowering.costs import Costs, layer_costs, lookup_costs
from fxhash.lowering.factor_store import FactorStore
from fxhash.lowering.factored_modules import (
    WeightSource,
    can_be_factored,
    can_be_lowered,
    can_generate_parameters,
    can_take_unbuilt,
    generate_parameters,
    lower_layer,
)
from fxhash.lowering.factored_tensor import as_factored
from fxhash.lowering.functional import (
    adaptive_conv,
    adaptive_linear,
    depthwise,
    factored_conv,
    factored_embedding,
    factored_linear,
    rows_per_channel,
)
from fxhash.lowering.memory import assign_slots, peak_of
from fxhash.lowering.plan import LoweringPlan, WeightUse, cached_bytes
from fxhash.lowering.scratch import ScratchSlots
from fxhash.passes.contract import graph_pass
from fxhash.passes.fold_batch_norm import FoundNorm, batch_norm_after, folded_bias, norm_scale
from fxhash.smh.arithmetic import generate, is_row_aligned, separable
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.plan import ParameterPlan


class _Layer(NamedTuple):
    """A function whose weight can be multiplied by in turn."""

    factored: Callable[..., Tensor]
    adaptive: Callable[..., Tensor] | None


_CONVOLUTION = _Layer(factored_conv, adaptive_conv)
_LAYERS: dict[Any, _Layer] = {
    F.linear: _Layer(factored_linear, adaptive_linear),
    F.conv1d: _CONVOLUTION,
    F.conv2d: _CONVOLUTION,
    F.conv3d: _CONVOLUTION,
    F.embedding: _Layer(factored_embedding, None),
}
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
# A depthwise convolution moves memory for few operations: below so many input channels that takes longer than what the
# pointwise half saves. (ResNet-34's layers at batch 100, split and whole, in ms: 102 and 59 with 64 channels, 39 and 33
# with 128, 14 and 32 with 256.)
_LEAST_SPLIT_CHANNELS = 256


@graph_pass
def lower_weights(graph_module: fx.GraphModule, methods: Mapping[str, str] | None = None) -> bool:
    """Lower every use of every generated weight, and fold batch norms into the factors.

    A separable convolution of many channels becomes a depthwise one with its kernels, and a pointwise one, whose weight
    is a run of `W`.
    A linear layer, convolution or embedding whose weight fits the columns multiplies by the factors in turn where that
    is fewer operations. Any other use gets its weight generated right before the first use, into a scratch slot that
    weights share whose live ranges don't overlap.

    Args:
        graph_module: a transformed model in eval mode, whose values are final. Batch norms that are folded are read.
        methods: how to compute the parameters of these names: `"factored"`, `"generate"`, or `"cache"` for a
            weight that is generated now, once and for all. The cost model chooses for all others.

    Raises:
        PlanError: if a parameter can't be multiplied by in turn that is to be.
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
    _Lowering(graph_module, generator).run(calls, methods or {})
    return True


class _Lowering:
    def __init__(self, graph_module: fx.GraphModule, generator: SMHGenerator) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self.generator = generator
        self.factors = FactorStore(generator.plan, generator.captured, generator.right.detach())
        self.name = free_name(graph_module, "smh_factors")
        graph_module.add_submodule(self.name, self.factors)
        self.uses: dict[fx.Node, WeightUse] = {}
        self.uses_inside: list[tuple[fx.Node, WeightUse]] = []
        self.position = {node: index for index, node in enumerate(graph_module.graph.nodes)}
        self.pointwise: set[str] = set()

    def run(self, calls: list[fx.Node], methods: Mapping[str, str]) -> None:
        self._split_separable(calls)
        self._lower_parts(methods)
        for call in calls:
            fqn = str(call.args[0])
            method = methods.get(fqn)
            if method in (None, "factored") and not is_changed_in_place(call):
                for user in list(call.users):
                    self._lower_layer(call, fqn, user, always=method is not None)
                    self._lower_attention(call, fqn, user, always=method is not None)
            if call.users and method == "factored":
                raise PlanError(
                    f"methods: {fqn!r} can't be multiplied by in turn where {next(iter(call.users)).name!r} uses it: "
                    "that is no plain linear layer, convolution or embedding whose channels nest with the columns of "
                    "W. Give it 'generate' or 'keep'"
                )
            if call.users and method == "cache":
                self._keep(call, fqn)
            elif call.users:
                self._generate(call, fqn)
            self.graph.erase_node(call)
        self._share_right()
        self.factors.plan = self._plan()
        self._insert_scratch()

    def _split_separable(self, calls: list[fx.Node]) -> None:
        """Split separable convolutions of many channels in two, whose second has a run of `W` as its weight."""
        by_name: dict[str, list[fx.Node]] = {}
        for call in calls:
            by_name.setdefault(str(call.args[0]), []).append(call)
        for fqn, same in by_name.items():
            parameter, users = self._parameter(fqn), [(call, user) for call in same for user in call.users]
            if (
                not parameter.kernels
                or parameter.shape[1] < _LEAST_SPLIT_CHANNELS
                or self._shift(fqn) is not None
                or not all(is_weight_of_layer(call, user) for call, user in users)
            ):
                continue
            kernels = self.generator.kernels_of(fqn).detach()
            key = self.factors.store(f"{fqn}, kernels", kernels.to(self.generator.dtype_of(parameter)))
            for call, user in users:
                arguments = all_arguments(user)
                moved = [arguments[name] for name in ("stride", "padding", "dilation")]
                with self.graph.inserting_before(user):
                    stored = self.graph.call_module(self.name, (key,))
                    spatial = (arguments["input"], stored, parameter.shape, *moved)
                    first = self.graph.call_function(depthwise, spatial)
                user.args, user.kwargs = (first, call, arguments["bias"]), {}
            self.pointwise.add(fqn)

    def _lower_parts(self, methods: Mapping[str, str]) -> None:
        """Let layers inside of opaque parts come by their weights when they are called."""
        nodes: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            if node.op == "call_module" and not self._is_attention(node):
                nodes.setdefault(str(node.target), []).append(node)
        for target, callers in nodes.items():
            part = self.graph_module.get_submodule(target)
            if isinstance(part, OpaqueModule):
                self._lower_part(target, part, callers, methods)

    def _lower_part(self, target: str, part: OpaqueModule, callers: list[fx.Node], methods: Mapping[str, str]) -> None:
        layers: dict[nn.Module, nn.Module] = {}
        generating: dict[nn.Module, dict[str, WeightSource]] = {}
        remaining: list[tuple[fx.Node, tuple[str, ...]]] = []
        weights: Any = callers[0].args[0]
        for call, names in zip(weights, part.names, strict=True):
            fqn = str(call.args[0])
            inside = [_owner(part.wrapped_module, name) for name in names]
            ways = self._ways_inside(part, fqn, inside)
            costs = self._costs_inside(fqn, inside, ways)
            is_table = isinstance(inside[0][0], nn.Embedding) and costs.factored is not None
            method = methods.get(fqn) or ("factored" if is_table else costs.method)
            if method == "adaptive" and ways != "layer":
                method = "generate"
            if (
                not ways
                or method == "cache"
                or self._parameter(fqn).kernels
                or (method == "factored" and costs.factored is None)
            ):
                remaining.append((call, names))
                continue
            source, memory = self._source(fqn, unbuilt=method == "factored")
            for owner, name in inside:
                if ways == "layer":
                    most = costs.max_positions if method == "adaptive" else 0
                    layers[owner] = lower_layer(owner, source, method, most)
                else:
                    generating.setdefault(owner, {})[name] = source
            for caller in callers:
                use = self._use(caller, fqn, method, costs, None, 0 if method == "factored" else memory)
                self.uses_inside.append((caller, replace(use, inside=names[0].rpartition(".")[0])))
        layers |= {
            owner: generate_parameters(layers.get(owner, owner), sources) for owner, sources in generating.items()
        }
        if not layers:
            return
        # The factors are one more value that the part is given: under no name, but the graph shows that it needs them.
        self.graph_module.set_submodule(target, part.replacing(layers, [*(names for _, names in remaining), ()]))
        for caller in callers:
            with self.graph.inserting_before(caller):
                right = self._right()
            caller.update_arg(0, (*(call for call, _ in remaining), right))

    def _ways_inside(self, part: OpaqueModule, fqn: str, inside: list[tuple[nn.Module, str]]) -> str:
        """Who can come by a weight inside of a part: its `"layer"`, `"attention"`, its `"module"`, or nobody."""
        owners = [owner for owner, _ in inside]
        plain = self._has_type_of_factors(fqn) and self._shift(fqn) is None
        if plain and all(can_be_lowered(owner) and name == "weight" for owner, name in inside):
            return "layer"
        # The part's own parameters are generated for each call of it anyway: by the graph, with its scratch memory.
        if part.wrapped_module in owners or not all(map(can_generate_parameters, owners)):
            return ""
        is_matrix = len(self._parameter(fqn).shape) == 2
        return "attention" if plain and is_matrix and all(map(can_take_unbuilt, owners)) else "module"

    def _source(self, fqn: str, unbuilt: bool) -> tuple[WeightSource, int]:
        """How a module comes by a weight itself, and the memory that takes."""
        parameter, left, shift = self._parameter(fqn), self._left(fqn), self._shift(fqn)
        key, shift_key = self.factors.store(fqn, left), ""
        if shift is not None:
            shift_key = self.factors.store(f"{fqn}, shift", shift)
        memory, dtype = self._generated_bytes(left), None
        if not self._has_type_of_factors(fqn):
            dtype = self.generator.dtype_of(parameter)
            memory += parameter.numel * dtype.itemsize
        return WeightSource(self.factors, key, parameter.shape, shift_key, dtype, unbuilt), memory

    def _costs_inside(self, fqn: str, inside: list[tuple[nn.Module, str]], ways: str) -> Costs:
        parameter = self._parameter(fqn)
        rank, cols = self._rank(parameter), self.factors.right.shape[1]
        multiplies = ways == "attention" or (ways == "layer" and all(can_be_factored(owner) for owner, _ in inside))
        if not multiplies or not is_row_aligned(parameter.shape, cols):
            return Costs(parameter.numel * rank)
        if isinstance(inside[0][0], nn.Embedding):
            return lookup_costs(parameter.shape, rank)
        return layer_costs(parameter.shape, rank, cols)

    def _has_type_of_factors(self, fqn: str) -> bool:
        return self.generator.dtype_of(self._parameter(fqn)) == self.factors.right.dtype

    def _lower_layer(self, call: fx.Node, fqn: str, user: fx.Node, always: bool) -> None:
        """Let a layer multiply in turn, if it can and should; fold the batch norm after it, if there is one."""
        if user.target not in _LAYERS or not self._may_be_factored(call, user):
            return
        layer, shape, left = _LAYERS[user.target], self._shape(fqn), self._left(fqn)
        costs = self._costs(call, user)
        # A table is never generated to look up rows of it: its memory is why it is compressed.
        adaptive = None if always or costs.method == "factored" else layer.adaptive
        channel_rows = rows_per_channel(shape, self.factors.right.shape[1])
        norm = None if channel_rows is None else self._fold_norm(fqn, user)
        if norm is not None and channel_rows is not None:
            left = left * norm_scale(norm).repeat_interleave(channel_rows).unsqueeze(1).to(left)
        arguments = all_arguments(user)
        given = [arguments[name] for name in ("bias", "stride", "padding", "dilation") if name in arguments]
        with self.graph.inserting_before(user):
            args = (arguments["input"], self._store(user, fqn, left), self._right(), shape, *given)
            if adaptive is None:
                lowered = self.graph.call_function(layer.factored, args)
            else:
                lowered = self.graph.call_function(adaptive, (*args, costs.max_positions))
        self.position[lowered] = self.position[user]
        user.replace_all_uses_with(lowered)
        self.graph.erase_node(user)
        method, memory = ("factored", 0) if adaptive is None else ("adaptive", self._generated_bytes(left))
        self.uses[lowered] = self._use(lowered, fqn, method, costs, norm, memory)

    def _lower_attention(self, call: fx.Node, fqn: str, user: fx.Node, always: bool) -> None:
        """Hand an attention layer its weight unbuilt, to multiply by it in turn, if that is less work."""
        if user not in call.users or not self._is_attention(user) or not self._may_be_factored(call, user):
            return
        costs = self._costs(call, user)
        if not always and costs.method != "factored":
            return
        with self.graph.inserting_before(user):
            args = (self._store(user, fqn, self._left(fqn)), self._right(), self._parameter(fqn).shape)
            weight = self.graph.call_function(as_factored, args)
        user.replace_input_with(call, weight)
        self.uses[weight] = self._use(weight, fqn, "factored", costs, None)

    def _is_attention(self, user: fx.Node) -> bool:
        part = self.graph_module.get_submodule(str(user.target)) if user.op == "call_module" else None
        return isinstance(part, OpaqueModule) and all(
            (type(module) in _ATTENTION or (_is_of_torch(module) and not module._parameters))
            and not (module._forward_pre_hooks or module._forward_hooks)
            for module in part.wrapped_module.modules()
        )

    def _may_be_factored(self, call: fx.Node, user: fx.Node) -> bool:
        fqn = str(call.args[0])
        shape = self._shape(fqn)
        return (
            ((self._is_attention(user) and len(shape) == 2) or is_weight_of_layer(call, user))
            and len(shape) >= 2
            and is_row_aligned(shape, self.factors.right.shape[1])
            and self._has_type_of_factors(fqn)
            and self._shift(fqn) is None
            and (not self._parameter(fqn).kernels or fqn in self.pointwise)
        )

    def _keep(self, call: fx.Node, fqn: str) -> None:
        """Generate the weight now and store it."""
        weight = self.generator(fqn, pointwise=fqn in self.pointwise).detach()
        costs = {user: self._costs(call, user) for user in call.users}
        norm = self._fold_into_only_user(call, fqn)
        if norm is not None:
            weight = (weight.flatten(1) * norm_scale(norm).unsqueeze(1).to(weight)).view(weight.shape)
        call.replace_all_uses_with(self._store(call, fqn, weight))
        for user, cost in costs.items():
            self.uses[user] = self._use(user, fqn, "cache", cost, norm)

    def _generate(self, call: fx.Node, fqn: str) -> None:
        """Generate the weight right before its first remaining use."""
        parameter, left, shift = self._parameter(fqn), self._left(fqn), self._shift(fqn)
        shape, dtype = self._shape(fqn), self.generator.dtype_of(parameter)
        is_built_of_run = bool(parameter.kernels) and fqn not in self.pointwise
        first_user = min(call.users, key=self.position.__getitem__)
        costs = self._costs(call, first_user)
        norm = None if is_built_of_run and shift is not None else self._fold_into_only_user(call, fqn)
        options: dict[str, Any] = {}
        added = None if shift is None else self._store(first_user, f"{fqn}, shift", shift)
        if added is not None and not is_built_of_run:
            options["shift"] = added
        if norm is not None:
            scale = norm_scale(norm).to(left)
            channel_rows = rows_per_channel(parameter.slice_shape, self.factors.right.shape[1])
            if channel_rows is None or shift is not None:
                options["channel_scale"] = self._store(first_user, f"{fqn}, scale", scale)
            else:
                left = left * scale.repeat_interleave(channel_rows).unsqueeze(1)
        memory = self._generated_bytes(left)
        with self.graph.inserting_before(first_user):
            args = (self._store(first_user, fqn, left), self._right(), parameter.slice_shape)
            weight = generated = self.graph.call_function(generate, args, options)
            if is_built_of_run:
                kernels = self._store(first_user, f"{fqn}, kernels", self.generator.kernels_of(fqn).detach())
                weight = self.graph.call_function(separable, (generated, kernels, shape))
                if added is not None:
                    weight = self.graph.call_function(operator.add, (weight, added))
                memory += parameter.numel * left.element_size()
            if dtype != self.factors.right.dtype:
                weight = self.graph.call_method("to", (weight, dtype))
                memory += math.prod(shape) * dtype.itemsize
        call.replace_all_uses_with(weight)
        self.uses[weight] = self._use(weight, fqn, "generate", costs, norm, memory)

    def _use(
        self, node: fx.Node, fqn: str, method: str, costs: Costs, norm: FoundNorm | None, memory: int = 0
    ) -> WeightUse:
        size = math.prod(self._shape(fqn)) * self.generator.dtype_of(self._parameter(fqn)).itemsize
        return WeightUse(
            node.name, fqn, method, size, costs, memory, folded_norm="" if norm is None else norm.node.name
        )

    def _costs(self, call: fx.Node, user: fx.Node) -> Costs:
        """Of this use; a layer of an unknown kind counts none of its own work."""
        parameter = self._parameter(str(call.args[0]))
        rank, shape = self._rank(parameter), self._shape(parameter.fqn)
        if not self._may_be_factored(call, user):
            return Costs(parameter.slice_numel * rank, math.prod(shape) if user.target in _LAYERS else 0)
        if user.target is F.embedding:
            return lookup_costs(shape, rank)
        return layer_costs(shape, rank, self.factors.right.shape[1])

    def _fold_norm(self, fqn: str, user: fx.Node) -> FoundNorm | None:
        """Take the batch norm after a convolution out of the graph and give the convolution the bias for both."""
        norm = batch_norm_after(self.graph_module, user)
        if norm is None:
            return None
        bias = all_arguments(user)["bias"]
        if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
            return None
        value = None if bias is None else operator.attrgetter(str(bias.target))(self.graph_module).detach()
        set_argument(user, "bias", self._store(user, f"{fqn}, bias", folded_bias(norm, value)))
        norm.node.replace_all_uses_with(user)
        self.graph.erase_node(norm.node)
        return norm

    def _fold_into_only_user(self, call: fx.Node, fqn: str) -> FoundNorm | None:
        """The batch norm that was folded, if the weight is that of one convolution and nothing else."""
        (user, *others) = call.users
        alone = not others and user.target in _LAYERS and all_arguments(user)["weight"] is call
        return self._fold_norm(fqn, user) if alone and user.all_input_nodes.count(call) == 1 else None

    def _parameter(self, fqn: str) -> ParameterPlan:
        return self.generator._hashed[fqn][1]

    def _shape(self, fqn: str) -> tuple[int, ...]:
        """Shape of what the layers multiply by: the weight, or that of the pointwise half of a separable one."""
        parameter = self._parameter(fqn)
        return parameter.slice_shape if fqn in self.pointwise else parameter.shape

    def _rank(self, parameter: ParameterPlan) -> int:
        return (parameter.rank or 0) + bool(parameter.more_rows)

    def _left(self, fqn: str) -> Tensor:
        return self.generator.scaled_left(fqn).detach()

    def _shift(self, fqn: str) -> Tensor | None:
        shift = self.generator.shifts[self.generator._hashed[fqn][0]]
        return shift.clone() if shift.item() else None

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

    def _plan(self) -> LoweringPlan:
        nodes = list(self.graph.nodes)
        position = {node: index for index, node in enumerate(nodes)}
        generated = {node for node, use in self.uses.items() if use.method == "generate"}
        live = {node: (position[node], position[node]) for node in self.uses} | live_ranges(self.graph, generated)
        uses = []
        for node in sorted(self.uses, key=position.__getitem__):
            last = nodes[live[node][1]]
            # Whatever may outlive the call has memory of its own: the slots are the next call's then.
            takes_slot = (
                node.target in (generate, adaptive_linear, adaptive_conv)
                and last.op != "output"
                and not any(self._may_store(user) for user in node.users)
            )
            use = replace(self.uses[node], live=live[node], until=last.name, slot=0 if takes_slot else None)
            uses.append(use)
        for node, use in self.uses_inside:
            uses.append(replace(use, live=(position[node], position[node]), until=node.name))
        uses.sort(key=lambda use: use.live)
        assigned, slot_bytes = assign_slots(uses)
        stored = sum(tensor.numel() * tensor.element_size() for tensor in self.factors.parameters())
        factor_bytes = stored - cached_bytes(assigned)
        return LoweringPlan(assigned, slot_bytes, peak_of(assigned, slot_bytes), factor_bytes)

    def _may_store(self, user: fx.Node) -> bool:
        """Whether a module may keep what it is given as an attribute; those of torch don't."""
        if user.op != "call_module":
            return False
        part = self.graph_module.get_submodule(str(user.target))
        modules = part.wrapped_module.modules() if isinstance(part, OpaqueModule) else part.modules()
        return not all(_is_of_torch(module) for module in modules)

    def _insert_scratch(self) -> None:
        """Borrow the slots before the first weight, and give them back at the end."""
        plan = self.factors.plan
        if not plan.slot_bytes:
            return
        name = free_name(self.graph_module, "smh_scratch")
        element_size = self.factors.right.element_size()
        sizes = tuple(size // element_size for size in plan.slot_bytes)
        self.graph_module.add_submodule(name, ScratchSlots(sizes))
        (right,) = [node for node in self.graph.nodes if node.target == self.name and not node.args]
        with self.graph.inserting_after(right):
            borrowed = self.graph.call_module(name, (right,))
        slots: dict[int, fx.Node] = {}
        by_name = {use.node: use for use in plan.uses}
        for node in list(self.graph.nodes):
            use = by_name.get(node.name)
            if use is not None and use.slot is not None:
                if use.slot not in slots:
                    with self.graph.inserting_before(node):
                        slots[use.slot] = self.graph.call_function(operator.getitem, (borrowed, use.slot))
                node.update_kwarg("scratch", slots[use.slot])
        with self.graph.inserting_before(next(iter(reversed(self.graph.nodes)))):
            self.graph.call_module(name, (right, borrowed))


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module inside of `module` that holds a parameter, and the parameter's name in it."""
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
