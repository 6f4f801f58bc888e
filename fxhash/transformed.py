"""What a transformed model is: recognised, refused, described and rebuilt."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import fx, nn
from torch.optim.swa_utils import AveragedModel

from fxhash.capture.capturing import capture_model
from fxhash.capture.checking import ExampleInputs
from fxhash.capture.copy_model import copy_model
from fxhash.capture.exported import Model, as_module
from fxhash.capture.foreign_modules import is_compiled
from fxhash.capture.ownership import refuse_gradient_hooks, refuse_originals, refuse_shared_memory
from fxhash.errors import TransformError
from fxhash.graph.names import CAPTURED, TRANSFORMED, original_name
from fxhash.lowering.factor_store import FactorStore, find_factor_store
from fxhash.original import Original, pass_on
from fxhash.passes import hash_parameters, restore_training_flags
from fxhash.smh.checks import check_module
from fxhash.smh.generator import SMHGenerator, find_generator
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.parameters import dtype_name
from fxhash.smh.plan import CompressionPlan

AnyModule = TypeVar("AnyModule", bound=nn.Module)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unwrapped(model: AnyModule) -> AnyModule:
    """The model in what `torch.compile`, `DataParallel`, `DistributedDataParallel` or `AveragedModel` made of it.

    Any other is given back as it is.

    Raises:
        TransformError: if the wrapper has hooks, which would be lost.
    """
    while isinstance(model, nn.Module) and (name := _wrapped_name(model)):
        if any(vars(model).get(hooks) for hooks in _HOOKS):
            raise TransformError(
                f"this {type(model).__name__} has hooks of its own, which the model inside lacks: register them on "
                f"its .{name} instead"
            )
        model = model._modules[name]  # type: ignore[assignment]
    return model


def _wrapped_name(model: nn.Module) -> str:
    """Where a wrapper holds the model that it was given; an empty string for a module that is no wrapper."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        return "module"
    return "_orig_mod" if is_compiled(model) else ""


def transformed_parts(model: object) -> dict[str, fx.GraphModule]:
    """The transformed models in a model, by their paths, lowered or not; one that is itself transformed has path `""`.

    Raises:
        TransformError: if `model` is no initialized module, or one of them is wrapped by itself.
    """
    check_module(model)
    assert isinstance(model, nn.Module)
    parts: dict[str, fx.GraphModule] = {}
    for path, module in model.named_modules():
        if _wrapped_name(module) and transformed_parts(unwrapped(module)):
            raise TransformError(
                f"{path} is a {type(module).__name__} around a transformed model: wrap the whole model instead, or put "
                "what was wrapped in its place first"
            )
        holders = [child for child in module.children() if isinstance(child, (SMHGenerator, FactorStore))]
        if isinstance(module, fx.GraphModule) and holders:
            parts[path] = module
    return {"": parts[""]} if "" in parts else parts


def required_parts(model: nn.Module) -> dict[str, fx.GraphModule]:
    """The transformed models in a model, by their paths, lowered or not.

    Raises:
        TransformError: if there is none.
    """
    parts = transformed_parts(model)
    if not parts:
        raise TransformError(f"this {type(model).__name__} has no generator: it is not the result of fxhash.transform")
    return parts


def with_parts(model: AnyModule, parts: Mapping[nn.Module, nn.Module]) -> AnyModule:
    """A model with others in place of some of its modules, in place; what stands for the model itself, if it is one."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and child in parts:
                module._modules[name] = parts[child]
    return parts.get(model, model)  # type: ignore[return-value]


def transformed_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """The transformed model that one lowered for training was made of, with what that holds now; any other itself."""
    graph = gm.meta.get(TRANSFORMED)
    if graph is None:
        return gm
    result = fx.GraphModule(gm, graph, class_name=type(gm).__name__)
    result.meta = {key: value for key, value in gm.meta.items() if key != TRANSFORMED}
    return pass_on(result)


def sharing_copy(model: AnyModule) -> AnyModule:
    """A copy of a model that shares all parameters and buffers with it."""
    everything = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return copy_model(model, shared={name for name, _ in everything})


def generator_of(gm: fx.GraphModule) -> SMHGenerator:
    """The generator of a transformed model."""
    generator = find_generator(gm)
    assert generator is not None
    return generator


def current_plan(gm: fx.GraphModule) -> CompressionPlan:
    """The plan of a transformed model, with the types that its parameters have by now.

    Raises:
        TransformError: if a module with a hashed parameter was put into it since, or one with dense parameters of other
            names or shapes than it had.
    """
    generator = generator_of(gm)
    dense = _dense_parameters(gm, generator)
    for parameter in generator.plan.parameters:
        if not parameter.hashed:
            _refuse_other_shape(parameter, dense.get(parameter.fqn))
    return _with_current_types(generator, dense)


def hashed_parameters(gm: fx.GraphModule) -> tuple[ParameterPlan, ...]:
    """The hashed parameters of a transformed model, with the types that they have by now.

    Raises:
        PlanError: if the factors are trained in few bits, and have been converted to a narrow type since.
    """
    return _with_current_types(generator_of(gm), {}).hashed


def _with_current_types(generator: SMHGenerator, dense: Mapping[str, nn.Parameter]) -> CompressionPlan:
    types = {name: parameter.dtype for name, parameter in dense.items()}
    types |= {parameter.fqn: generator.dtype_of(parameter) for parameter in generator.plan.hashed}
    parameters = (
        replace(parameter, dtype=dtype_name(types[parameter.fqn])) if parameter.fqn in types else parameter
        for parameter in generator.plan.parameters
    )
    return replace(generator.plan, parameters=tuple(parameters))


def _refuse_other_shape(planned: ParameterPlan, found: nn.Parameter | None) -> None:
    if found is None or tuple(found.shape) != planned.shape:
        now = "is gone" if found is None else f"had shape {planned.shape} then, and has {tuple(found.shape)} now"
        raise TransformError(
            f"a layer of this transformed model was replaced or removed since fxhash.transform: its parameter "
            f"{planned.fqn!r} {now}, and no file or count describes that. Change the original model before "
            "fxhash.transform. What was trained is not lost: fxhash.lower_for_deploy and fxhash.materialize take this "
            "model as it is"
        )


def _dense_parameters(gm: nn.Module, generator: SMHGenerator) -> dict[str, nn.Parameter]:
    """What stayed dense, by the names in the original model.

    Raises:
        TransformError: if a hashed parameter is among it.
    """
    dense = {original_name(name): parameter for name, parameter in gm.named_parameters(remove_duplicate=False)}
    for name in (name for parameter in generator.plan.hashed for name in (parameter.fqn, *parameter.aliases)):
        if name in dense:
            raise TransformError(
                f"a module with a parameter {name!r} was put into this transformed model, which goes on with the "
                "generated one: change the original model before fxhash.transform, or what fxhash.materialize makes of "
                "this one"
            )
    return dense


def rebuild(
    model: Model, plan: CompressionPlan, capture: str = "trace", example_inputs: ExampleInputs | None = None
) -> fx.GraphModule:
    """What `transform` would return for `model` with this plan, with the generator on the meta device."""
    model = as_module(model)
    refuse_transformed(model)
    traced = expose(model, {parameter.fqn for parameter in plan.hashed}, capture, example_inputs)
    generator = SMHGenerator(plan, "meta")
    generator.original = Original.of(model)
    return pass_on(hash_parameters(traced, generator).graph_module)


def expose(
    model: nn.Module, names: Collection[str], capture: str = "trace", example_inputs: ExampleInputs | None = None
) -> fx.GraphModule:
    """Capture a model with the parameters of these names as nodes, whose training flags follow its mode.

    The other arguments are those of `transform`.

    Raises:
        TransformError: if one of them can't be generated, or the original can be reached from the result.
    """
    refuse_shared_memory(model, names)
    refuse_gradient_hooks(model)
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


def require_transformed(model: object) -> dict[str, fx.GraphModule]:
    """The transformed models in a model, by their paths.

    Raises:
        TransformError: unless there is one, all of them have values, none is lowered, and no module with a hashed
            parameter was put into one since.
    """
    if not isinstance(model, nn.Module):
        raise TransformError(f"expected the result of fxhash.transform or fxhash.load, got {type(model).__name__}")
    parts = transformed_parts(model)
    if find_factor_store(model) is not None:
        raise TransformError("this model is lowered already: use the transformed model that it was made of")
    if not parts:
        raise TransformError(
            f"expected the result of fxhash.transform or fxhash.load, or a model that holds some, got "
            f"{type(model).__name__} without a generator"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise TransformError(
            "this model is on the meta device and has no values yet: fxhash.load some, or transform the original with "
            "device='cpu' or the like"
        )
    refuse_replaced(parts)
    return parts


def refuse_replaced(parts: Mapping[str, fx.GraphModule]) -> None:
    """Raise TransformError if a module with a hashed parameter was put into one of some models, lowered or not."""
    for part in parts.values():
        generator = find_generator(part)
        if generator is not None:
            _dense_parameters(part, generator)
