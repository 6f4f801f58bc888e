"""The passes that carry out a lowering plan, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxhash.lowering.factor_store import FactorStore, build_factor_store
from fxhash.lowering.plan import LoweringPlan
from fxhash.lowering.readers import generator_calls
from fxhash.passes.answer_types import answer_types
from fxhash.passes.apply_separable import apply_separable
from fxhash.passes.cache_weights import cache_weights
from fxhash.passes.check_inputs import check_inputs
from fxhash.passes.contract import GraphPass, in_sequence
from fxhash.passes.factor_attention import factor_attention
from fxhash.passes.factor_layers import factor_layers
from fxhash.passes.fold_batch_norm import fold_batch_norm
from fxhash.passes.generate_on_demand import generate_on_demand
from fxhash.passes.join_lookups import join_lookups
from fxhash.passes.lower_opaque_modules import lower_opaque_modules
from fxhash.passes.multiply_pointwise import multiply_pointwise
from fxhash.passes.nodes import USE, FactorSource
from fxhash.passes.order_channels import order_gradients, put_channels_last, restore_order
from fxhash.passes.regenerate_weights import regenerate_weights
from fxhash.passes.share_scratch import share_scratch
from fxhash.passes.split_separable import split_separable
from fxhash.smh.generator import SMHGenerator

LoweringPass = GraphPass[[LoweringPlan, FactorStore]]

# Any first few of them give a model with the same outputs.
LOWERING: tuple[LoweringPass, ...] = (
    answer_types,
    check_inputs,
    split_separable,
    fold_batch_norm,
    factor_layers,
    join_lookups,
    factor_attention,
    lower_opaque_modules,
    multiply_pointwise,
    put_channels_last,
    cache_weights,
    generate_on_demand,
    share_scratch,
)

# The same for a model that goes on being trained: nothing is folded, cached, or computed of its parameters beforehand.
TRAINING: tuple[GraphPass[[LoweringPlan, FactorSource]], ...] = (
    answer_types,
    check_inputs,
    apply_separable,
    factor_layers,
    factor_attention,
    regenerate_weights,
    order_gradients,
    restore_order,
)


def lower(gm: fx.GraphModule, plan: LoweringPlan, passes: Sequence[LoweringPass] = LOWERING) -> fx.GraphModule:
    """Carry out a plan.

    Args:
        gm: the transformed model that was planned; it is left untouched, and shares buffers with the result.
        plan: of `plan_lowering`.
        passes: those to run, the first few of `LOWERING`.

    Returns:
        A graph module with the same outputs up to rounding.
    """
    store = build_factor_store(gm, _generator(gm), plan)
    lowered = in_sequence(passes)(gm, plan, store).graph_module
    for node in lowered.graph.nodes:
        node.meta.pop(USE, None)
    return lowered


def lower_to_train(
    gm: fx.GraphModule, plan: LoweringPlan, passes: Sequence[GraphPass[[LoweringPlan, FactorSource]]] = TRAINING
) -> fx.GraphModule:
    """Carry out a plan for training.

    Args:
        gm: the transformed model that was planned; it is left untouched, and shares all parameters with the result.
        plan: of `plan_lowering` for training.
        passes: those to run, the first few of `TRAINING`.

    Returns:
        A graph module with the same outputs and gradients up to rounding.
    """
    lowered = in_sequence(passes)(gm, plan, _generator(gm)).graph_module
    for node in lowered.graph.nodes:
        node.meta.pop(USE, None)
    return lowered


def _generator(gm: fx.GraphModule) -> SMHGenerator:
    weight, *_ = generator_calls(gm)
    generator = gm.get_submodule(str(weight.target))
    assert isinstance(generator, SMHGenerator)
    return generator
