"""What a transformed model is: recognised, refused, described and rebuilt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import fx, nn

from fxhash.capture.capturing import capture_model
from fxhash.capture.checking import ExampleInputs
from fxhash.capture.exported import Model, as_module
from fxhash.capture.ownership import refuse_originals, refuse_shared_memory
from fxhash.errors import TransformError
from fxhash.graph.names import CAPTURED, original_name
from fxhash.lowering.factor_store import find_factor_store
from fxhash.passes import hash_parameters, restore_training_flags
from fxhash.smh.generator import SMHGenerator, find_generator
from fxhash.smh.parameters import dtype_name
from fxhash.smh.plan import CompressionPlan


def current_plan(gm: nn.Module) -> CompressionPlan:
    """The plan of a transformed model, with the types that its parameters have by now.

    Raises:
        TransformError: if `gm` is not a transformed model.
    """
    generator = find_generator(gm)
    if generator is None:
        raise TransformError(f"this {type(gm).__name__} has no generator: it is not the result of fxhash.transform")
    dense = {original_name(name): parameter for name, parameter in gm.named_parameters(remove_duplicate=False)}
    parameters = []
    for parameter in generator.plan.parameters:
        dtype = generator.dtype_of(parameter) if parameter.hashed else dense[parameter.fqn].dtype
        parameters.append(replace(parameter, dtype=dtype_name(dtype)))
    return replace(generator.plan, parameters=tuple(parameters))


def rebuild(
    model: Model, plan: CompressionPlan, capture: str = "trace", example_inputs: ExampleInputs | None = None
) -> fx.GraphModule:
    """What `transform` would return for `model` with this plan, with the generator on the meta device."""
    model = as_module(model)
    refuse_transformed(model)
    traced = expose(model, {parameter.fqn for parameter in plan.hashed}, capture, example_inputs)
    return hash_parameters(traced, SMHGenerator(plan, "meta")).graph_module


def expose(
    model: nn.Module, names: Collection[str], capture: str = "trace", example_inputs: ExampleInputs | None = None
) -> fx.GraphModule:
    """Capture a model with the parameters of these names as nodes, whose training flags follow its mode.

    The other arguments are those of `transform`.

    Raises:
        TransformError: if one of them can't be generated, or the original can be reached from the result.
    """
    refuse_shared_memory(model, names)
    traced = capture_model(model, names, capture, example_inputs)
    refuse_originals(traced, model, names)
    if isinstance(model, fx.GraphModule) and CAPTURED not in model.meta:
        return restore_training_flags(traced).graph_module
    return traced


def refuse_transformed(model: object) -> None:
    """Raise TransformError if `model` is no module, or one whose weights are generated already."""
    if find_generator(model) is not None or find_factor_store(model) is not None:
        raise TransformError(
            "this model is transformed already: its weights are generated. Transform the original model, or "
            "fxhash.materialize(...) this one first"
        )


def require_transformed(gm: object) -> None:
    """Raise TransformError unless `gm` is a transformed model that has values and is not lowered."""
    if isinstance(gm, nn.Module) and find_factor_store(gm) is not None:
        raise TransformError("this model is lowered already: use the transformed model that it was made of")
    if not isinstance(gm, fx.GraphModule) or find_generator(gm) is None:
        raise TransformError(
            f"expected the result of fxhash.transform or fxhash.load, got {type(gm).__name__} without a generator"
        )
    if any(parameter.is_meta for parameter in gm.parameters()):
        raise TransformError(
            "this model is on the meta device and has no values yet: fxhash.load some, or transform the original with "
            "device='cpu' or the like"
        )
