"""Planning: from a transformed graph, which is only read, to the whole plan of the lowered model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxhash.capture.opaque import OpaqueModule
from fxhash.errors import PlanError, TransformError
from fxhash.graph.arguments import all_arguments
from fxhash.graph.layers import is_layer_of, is_plain_layer_of
from fxhash.graph.liveness import Dataflow, is_changed_in_place
from fxhash.lowering.batch_norm import FoundNorm, foldable_norm
from fxhash.lowering.costs import Costs
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.factored_modules import can_be_factored
from fxhash.lowering.lowering_options import FOR_INFERENCE, LoweringOptions
from fxhash.lowering.memory import assign_slots, choose_cached, choose_small, peak_of
from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan, Reader, WeightUse
from fxhash.lowering.readers import (
    asks_for_type,
    generator_calls,
    is_argument,
    is_attention,
    may_store,
    opaque_module,
    reader_in_graph,
    reader_in_opaque,
)
from fxhash.lowering.splitting import is_faster_split
from fxhash.lowering.training_costs import training_costs, trains_faster_split
from fxhash.lowering.weights import Weight, right_bytes, widened_bytes
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.parameter_plan import ParameterPlan


def plan_lowering(
    gm: fx.GraphModule,
    requested: Mapping[str, Method] | None = None,
    budget: int | None = 0,
    options: LoweringOptions = FOR_INFERENCE,
) -> LoweringPlan:
    """Decide how each weight of a transformed model is computed when it is lowered.

    In this order: find the uses, choose their methods, find the batch norms to fold, the live ranges, the scratch
    slots, and what is cached within the budget.

    Args:
        gm: a transformed model, in eval mode unless it is for training; it is read and not changed.
        requested: methods for parameters by their names; the cost model chooses for all others.
        budget: bytes for weights, scratch included, within which weights are cached; with 0, only those requested are.
            None to cache few small ones, as by `choose_small`.
        options: what the model is lowered for.

    Raises:
        TransformError: if `gm` is not a transformed model.
        PlanError: if a parameter can't be factored that is requested to be.
        MemoryBudgetError: if the budget is less than what generating on demand takes; it names the least.
    """
    requested = dict(requested or {})
    calls = generator_calls(gm)
    if not calls:
        raise TransformError("this graph module generates no weight: give the result of fxhash.transform")
    generator = gm.get_submodule(str(calls[0].target))
    assert isinstance(generator, SMHGenerator)
    device = options.device or DeviceProfile.of(generator.right.device)
    analysis = _Analysis(gm, generator, calls, device, options)
    plan = analysis.plan(requested)
    candidates = {str(call.args[0]) for call in calls} - requested.keys()
    if budget is None:
        cached = choose_small(plan, candidates, device)
    elif budget:
        cached = choose_cached(plan, budget, candidates, device)
    else:
        return plan
    plan = analysis.plan(requested | dict.fromkeys(cached, Method.CACHE))
    assert not budget or plan.peak_bytes <= budget, "a memory budget is exceeded"
    return plan


class _Analysis:
    """What is known of a transformed graph whatever the methods."""

    def __init__(
        self,
        gm: fx.GraphModule,
        generator: SMHGenerator,
        calls: Sequence[fx.Node],
        device: DeviceProfile,
        options: LoweringOptions,
    ) -> None:
        self.gm = gm
        self.generator = generator
        self.device = device
        self.flow = Dataflow(gm.graph)
        self.options = options
        self.factor_bits = generator.bits_to_store() if options.in_eight_bits else None
        self.noticing: dict[OpaqueModule, bool] = {}
        self.weights = {call: self._weight(generator, call) for call in calls}

    def plan(self, requested: Mapping[str, Method]) -> LoweringPlan:
        """The plan with these methods, and those that the cost model chooses."""
        found = [use for call in self.weights for use in self._uses_of(call, requested.get(str(call.args[0])))]
        found.sort(key=lambda use: use.live)
        uses, slot_bytes = assign_slots(found)
        stored = {use.key(each.role): each for use in uses for each in use.stored if each.role != "weight"}
        compression, dtype, bits = self.generator.plan, self.generator.right.dtype, self.factor_bits
        factor_bytes = right_bytes(compression.layout, dtype, bits) + sum(each.bytes for each in stored.values())
        widened = 0 if bits is None else max((widened_bytes(use, compression, dtype) for use in uses), default=0)
        return LoweringPlan(
            uses, slot_bytes, peak_of(uses, slot_bytes), factor_bytes, bits, widened, self.device.channels_last
        )

    def _weight(self, generator: SMHGenerator, call: fx.Node) -> Weight:
        fqn = str(call.args[0])
        parameter, has_shift = generator.parameter(fqn), generator.shift(fqn) is not None
        return Weight(
            parameter=parameter,
            rows=generator.plan.rows_of(parameter),
            cols=generator.plan.layout.cols,
            has_shift=has_shift,
            is_split=(
                parameter.kernels > 0
                and not has_shift
                and self._is_faster_split(parameter, call)
                and all(is_plain_layer_of(call, node) for node in call.users if not asks_for_type(call, node))
            ),
            dtype=generator.dtype_of(parameter),
            factor_dtype=generator.right.dtype,
            factor_bits=self.factor_bits,
        )

    def _is_faster_split(self, parameter: ParameterPlan, call: fx.Node) -> bool:
        if self.options.for_training:
            # Both halves compute with trained tensors themselves, of one type.
            has_type = self.generator.dtype_of(parameter) == self.generator.right.dtype
            return has_type and trains_faster_split(parameter, self.device)
        known = [self.options.positions[node.name] for node in call.users if node.name in self.options.positions]
        return is_faster_split(parameter, self.generator.plan.layout.cols, self.device, min(known, default=None))

    def _uses_of(self, call: fx.Node, requested: Method | None) -> Iterable[WeightUse]:
        """The uses of a weight: by modules nested in opaque submodules, by factored layers, and by all other nodes."""
        remaining = []
        for node in call.users:
            if asks_for_type(call, node):
                continue
            use = self._nested_use(call, node, requested) or self._factored_use(call, node, requested)
            if use is None:
                remaining.append(node)
            else:
                yield use
        if remaining:
            remaining.sort(key=self.flow.position.__getitem__)
            if requested is Method.FACTORED:
                raise PlanError(
                    f"methods: {call.args[0]!r} can't be factored where {remaining[0].name!r} uses it: that is no "
                    "plain linear layer, convolution or embedding whose channels are aligned with the rows of W. Give "
                    "it 'generate' or 'cache'"
                )
            yield self._materialized_use(call, remaining, requested or Method.GENERATE)

    def _nested_use(self, call: fx.Node, node: fx.Node, requested: Method | None) -> WeightUse | None:
        """The use by a module nested in an opaque submodule, which computes the weight itself; None if it can't."""
        called = opaque_module(self.gm, node)
        if called is None or is_attention(self.gm, node) or requested is Method.CACHE or self.options.for_training:
            return None
        if self._must_stay(called):
            return None
        if any(is_argument(call, caller) for caller in call.users if caller.target == node.target):
            return None
        weight = self.weights[call]
        parameters: Any = node.args[0]
        names = called.names[parameters.index(call)]
        reader = reader_in_opaque(called, names, weight)
        if reader is None or weight.parameter.kernels:
            return None
        owners = [called.wrapped_module.get_submodule(name.rpartition(".")[0]) for name in names]
        applies = reader is Reader.ATTENTION or (reader.is_plain_layer and all(map(can_be_factored, owners)))
        costs = weight.costs(reader, applies and weight.can_be_factored)
        chosen = Method.FACTORED if reader is Reader.EMBEDDING and costs.factored else costs.method_on(self.device)
        method = requested or chosen
        if method is Method.ADAPTIVE and not reader.is_plain_layer:
            method = Method.GENERATE
        if method is Method.FACTORED and costs.factored is None:
            return None
        memory = 0 if method is Method.FACTORED else weight.generated_bytes
        module = names[0].rpartition(".")[0]
        return self._use(call, [node], reader, method, costs, module=module, memory_bytes=memory)

    def _must_stay(self, called: OpaqueModule) -> bool:
        """Whether an opaque submodule would notice that other layers stand for its own."""
        if called not in self.noticing:
            looks = not self.options.replaces_watched_layers and called.looks_at_weights()
            self.noticing[called] = called.is_reached_otherwise or looks
        return self.noticing[called]

    def _factored_use(self, call: fx.Node, node: fx.Node, requested: Method | None) -> WeightUse | None:
        """The use by a layer of the graph that can and should apply the factors; None if it can't or shouldn't."""
        reader = reader_in_graph(self.gm, call, node)
        if requested in (Method.GENERATE, Method.CACHE) or not self._can_apply_factors(call, reader):
            return None
        is_trained_table = self.options.for_training and reader is Reader.EMBEDDING
        if is_trained_table and all_arguments(node)["scale_grad_by_freq"]:
            return None
        weight = self.weights[call]
        costs = self._costs(weight, reader, can_be_factored=True)
        # A table is never generated to look up rows of it: its memory is why it is compressed.
        always = requested is Method.FACTORED or reader is Reader.EMBEDDING
        method = Method.FACTORED if always else costs.method_on(self.device)
        if method is Method.GENERATE:
            return None
        if reader is Reader.ATTENTION:
            return self._use(call, [node], reader, method, costs) if method is Method.FACTORED else None
        norm = None if weight.rows_per_channel is None else self._foldable_norm(call, node)
        memory = weight.slice_bytes if method is Method.ADAPTIVE else 0
        return self._use(call, [node], reader, method, costs, norm, memory_bytes=memory)

    def _materialized_use(self, call: fx.Node, nodes: Sequence[fx.Node], method: Method) -> WeightUse:
        """The use by nodes that need the weight itself."""
        weight, first = self.weights[call], nodes[0]
        reader = reader_in_graph(self.gm, call, first)
        costs = self._costs(weight, reader, self._can_apply_factors(call, reader))
        is_only_weight = len(nodes) == 1 and is_layer_of(call, first)
        # The shift of a separable weight is added after its kernels, where no scale of a channel reaches it.
        shifted_later = weight.has_shift and weight.parameter.kernels > 0 and method is Method.GENERATE
        norm = self._foldable_norm(call, first) if is_only_weight and not shifted_later else None
        memory = weight.generated_bytes if method is Method.GENERATE else 0
        return self._use(call, nodes, reader, method, costs, norm, memory_bytes=memory)

    def _use(
        self,
        call: fx.Node,
        nodes: Sequence[fx.Node],
        reader: Reader,
        method: Method,
        costs: Costs,
        norm: FoundNorm | None = None,
        module: str | None = None,
        memory_bytes: int = 0,
    ) -> WeightUse:
        """The use with what follows from the rest: its live range, whether it takes a slot, what is stored for it."""
        weight, first = self.weights[call], nodes[0]
        in_memory = [first]
        if method is Method.GENERATE and module is None:
            in_memory = self.flow.memory_readers(call, nodes)
        last = in_memory[-1]
        # Whatever may outlive the call has memory of its own: the slots are the next call's then.
        may_outlive = last.op == "output" or any(may_store(self.gm, node) for node in in_memory)
        generates_in_graph = module is None and (
            method is Method.ADAPTIVE or (method is Method.GENERATE and weight.is_slice and not may_outlive)
        )
        return WeightUse(
            parameter=weight.parameter,
            weight=call.name,
            node=first.name,
            readers=tuple(node.name for node in nodes),
            reader=reader,
            method=method,
            module=module,
            cast=None if weight.dtype == weight.factor_dtype else weight.dtype,
            split=weight.is_split,
            folded_norm="" if norm is None else norm.node.name,
            costs=costs,
            weight_bytes=weight.bytes,
            memory_bytes=memory_bytes,
            live=(self.flow.position[first], self.flow.position[last]),
            until=last.name,
            slot=0 if generates_in_graph and self.device.shares_scratch and not self.options.for_training else None,
            stored=tuple(weight.stored(method, norm)),
        )

    def _foldable_norm(self, call: fx.Node, node: fx.Node) -> FoundNorm | None:
        """The batch norm that can be folded into a convolution; none whose folding overflows in float16."""
        if self.options.for_training:
            return None
        norm, weight = foldable_norm(self.gm, node), self.weights[call]
        if norm is None or weight.dtype != torch.float16:
            return norm
        largest = self.generator.largest_entry(weight.parameter.fqn, pointwise=weight.is_split)
        return norm if norm.fits(weight.dtype, largest) else None

    def _costs(self, weight: Weight, reader: Reader, can_be_factored: bool) -> Costs:
        if self.options.for_training:
            return training_costs(weight, reader, can_be_factored, self.device)
        return weight.costs(reader, can_be_factored)

    def _can_apply_factors(self, call: fx.Node, reader: Reader) -> bool:
        weight = self.weights[call]
        fits_reader = reader.is_plain_layer or (reader is Reader.ATTENTION and len(weight.shape) == 2)
        return fits_reader and weight.can_be_factored and not is_changed_in_place(call)
