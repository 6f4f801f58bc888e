"""Store a transformed model as one `.safetensors` file, and make it again of the file and the original model's code.

The file holds the state dict of the transformed model (factors, scales, whatever stayed dense, and buffers) and the
plan.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from fxhash.capture.checking import ExampleInputs
from fxhash.capture.exported import Model, as_module
from fxhash.errors import CheckpointError, PlanError, TransformError
from fxhash.graph.names import original_name
from fxhash.lowering.factor_store import find_factor_store
from fxhash.printable import shortened
from fxhash.smh.checks import check_flag
from fxhash.smh.generator import SMHGenerator, find_generator
from fxhash.smh.plan import CompressionPlan
from fxhash.storage.atomic import replacing
from fxhash.storage.fit import check_parameters, check_tensors
from fxhash.storage.model_file import StoredModel, pack, unpack
from fxhash.storage.paths import read_path
from fxhash.storage.quantization import dequantize_, quantized
from fxhash.storage.values import describe_not_finite, describe_not_finite_weight
from fxhash.transformed import current_plan, rebuild, refuse_transformed

PathLike: TypeAlias = str | os.PathLike[str]

# Of the generator's parameters that may be quantized, the dimension whose entries share a step in 8 bits.
_SHARES_A_STEP = {"right": 1, "left": 0, "more_left": 0, "kernels": 1}


def save(gm: fx.GraphModule, path: PathLike, *, dtype: torch.dtype | None = None, allow_nan: bool = False) -> None:
    """Write a transformed model to one `.safetensors` file.

    The file is complete or not there: it is written under another name in the same folder and then renamed.

    Args:
        gm: a transformed model, on any device.
        path: where to write; an existing file is replaced.
        dtype: type to store the factors in: `torch.bfloat16`, `torch.float16`, or `torch.int8` with a step size a rank
            of each; as they are if omitted. `load` gives the type of the model again, with rounded values.
        allow_nan: whether to store a model that holds NaN, or infinity where values are trained, which is refused
            otherwise. Buffers and frozen parameters may hold infinities, as masks do.

    Raises:
        PlanError: for another type, or if the model has more parameters than a file may hold.
        TransformError: if `gm` is not a transformed model.
        CheckpointError: if it has no values yet, they are NaN or infinite, the type can't hold them, or the file can't
            be written.
    """
    check_flag("allow_nan", allow_nan)
    if find_factor_store(gm) is not None:
        raise TransformError("this model is lowered already: save the transformed model that it was made of")
    plan = current_plan(gm)
    text = plan.to_json()
    # What `load` would refuse is not written.
    CompressionPlan.from_json(text)
    tensors = _distinct_tensors(gm)
    if not allow_nan:
        wrong = describe_not_finite(tensors, plan) or describe_not_finite_weight(_generator(gm))
        if wrong:
            raise CheckpointError(
                f"{wrong}, so nothing is written: fxhash.save(..., allow_nan=True) stores it as it is"
            )
    if dtype is not None:
        tensors = quantized(tensors, _factors(gm), dtype)
    content = pack(text, tensors)
    target = read_path(path)
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"{target} can't be written: {error}") from error


def load(
    path: PathLike,
    model: Model,
    *,
    allow_nan: bool = False,
    example_inputs: ExampleInputs | None = None,
    capture: str = "trace",
) -> fx.GraphModule:
    """Rebuild a transformed model from a file and the code of the model that it was made of.

    The file may come from anybody: what it says is checked against itself and the model before memory is taken for it.

    Args:
        path: a file that `save` wrote.
        model: the original model, freshly built or exported; its values don't matter and it is left untouched. It may
            be on the meta device, which saves allocating its dense weights: the result is then on the CPU.
        allow_nan: whether to take a file that holds NaN, or infinity where values are trained, which is refused
            otherwise.
        example_inputs: arguments of forward to check the captured model on, as in `transform`.
        capture: how to capture the model, as in `transform`; it need not be as it was when the file was written.

    Returns:
        The transformed model, on the device and in the mode of `model`.

    Raises:
        CheckpointError: if the file can't be read, is damaged, doesn't fit the model, or holds NaN; the message names
            the first parameter that differs.
    """
    check_flag("allow_nan", allow_nan)
    model = as_module(model)
    refuse_transformed(model)
    stored = _with_original_names(unpack(read_path(path)))
    plan = _plan_of(stored, path)
    check_parameters(plan, model, path)
    gm = rebuild(model, plan, capture, example_inputs)
    if find_generator(gm) is None:
        raise CheckpointError(f"{path} does not fit this model, whose forward reads none of the generated parameters")
    first_names = _first_names(gm)
    state = gm.state_dict()
    expected = {original_name(name): tensor for name, tensor in state.items() if first_names[name] == name}
    check_tensors(expected, stored.tensors, _factors(gm), path)
    device = model.get_parameter(plan.hashed[0].fqn).device
    _fill_generator(gm, stored, "cpu" if device.type == "meta" else device)
    _fill_others(gm, stored)
    for name, buffer in gm.named_buffers():
        if buffer.is_meta and buffer.numel():
            raise CheckpointError(
                f"buffer {name!r} is not part of the state dict and has no value on the meta device: build the model "
                "on a real device"
            )
    if not allow_nan:
        _refuse(describe_not_finite(gm.state_dict(), plan) or describe_not_finite_weight(_generator(gm)), path)
    return gm


def read_plan(path: PathLike) -> CompressionPlan:
    """The plan of a file that `save` wrote, after checking the whole file as far as that is possible without a model.

    Raises:
        CheckpointError: if the file can't be read, is damaged, or holds NaN, or infinity where values are trained.
    """
    stored = unpack(read_path(path))
    plan = _plan_of(stored, path)
    _refuse(describe_not_finite(stored.tensors, plan), path)
    return plan


def _with_original_names(stored: StoredModel) -> StoredModel:
    """What was stored, by the names in the original model: older files have those of opaque submodules."""
    return replace(stored, tensors={original_name(name): tensor for name, tensor in stored.tensors.items()})


def _plan_of(stored: StoredModel, path: PathLike) -> CompressionPlan:
    try:
        return CompressionPlan.from_json(stored.plan)
    except PlanError as error:
        raise CheckpointError(f"{path} holds a plan that can't be used: {shortened(str(error))}") from error


def _refuse(wrong: str, path: PathLike) -> None:
    if wrong:
        raise CheckpointError(
            f"{path} would give wrong outputs: {wrong}. fxhash.load(..., allow_nan=True) takes it as it is"
        )


@torch.no_grad()
def _fill_generator(gm: fx.GraphModule, stored: StoredModel, device: torch.device | str) -> None:
    """Take memory for the generator, which is on the meta device, and set it to what was stored."""
    _generator(gm).to_empty(device=device)
    state = gm.state_dict()
    for name in _names_of_generator(gm):
        dequantize_(state[name], name, stored.tensors)


def _fill_others(gm: fx.GraphModule, stored: StoredModel) -> None:
    """Set all tensors but the generator's to what was stored, in new memory where they are on the meta device."""
    state, first_names = gm.state_dict(), _first_names(gm)
    for name in _names_of_generator(gm):
        del state[name]
    on_meta = any(tensor.is_meta for tensor in state.values())
    parameters = dict(gm.named_parameters(remove_duplicate=False))
    values: dict[str, Tensor] = {}
    for name in state:
        first = first_names[name]
        if first not in values:
            value = stored.tensors[original_name(first)]
            # A copy, since what was stored is a view of the file; one parameter for all of its names.
            value = value.clone() if on_meta else value
            is_parameter = on_meta and first in parameters
            values[first] = nn.Parameter(value, requires_grad=False) if is_parameter else value
    # Updated, not made anew: a state dict also carries the versions of the modules' formats.
    state.update({name: values[first_names[name]] for name in state})
    gm.load_state_dict(state, strict=False, assign=on_meta)


def _generator(gm: fx.GraphModule) -> SMHGenerator:
    generator = find_generator(gm)
    assert generator is not None
    return generator


def _names_of_generator(gm: fx.GraphModule) -> list[str]:
    """Names of the generator's tensors in the state dict."""
    generator = _generator(gm)
    (prefix,) = (path for path, module in gm.named_modules() if module is generator)
    return [f"{prefix}.{name}" for name in generator.state_dict()]


def _distinct_tensors(gm: fx.GraphModule) -> dict[str, Tensor]:
    """The state dict on the CPU, each tensor under the first of its names."""
    state: dict[str, Any] = gm.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{name!r} in the state dict is a {type(tensor).__name__}, not a tensor: it can't be stored"
            )
        if hasattr(tensor, "full_tensor"):
            raise CheckpointError(
                f"{name!r} is sharded over several processes: gather the state dict into an unsharded model and save "
                "that (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True)"
            )
        if tensor.is_meta:
            raise CheckpointError(f"{name!r} is on the meta device: there are no values to save")
    first_names = _first_names(gm)
    # By the names that they had in the original, however it was captured.
    return {
        original_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if first_names[name] == name
    }


def _factors(gm: fx.GraphModule) -> dict[str, int]:
    """Names of factors and kernels in the state dict, and the dimension whose entries share a step in 8 bits."""
    named = [(name, name.split(".")[1]) for name in _names_of_generator(gm)]
    return {name: _SHARES_A_STEP[kind] for name, kind in named if kind in _SHARES_A_STEP}


def _first_names(gm: fx.GraphModule) -> dict[str, str]:
    """For each name in the state dict, the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in gm.state_dict(keep_vars=True).items()}
