"""Store a transformed model as one `.safetensors` file, the plan in its metadata; no pickle.

The file holds the state dict of the transformed model: factors, scales, whatever stayed dense, and buffers. A digest
of plan and tensors is kept beside the plan, so that a damaged file is recognised before a model is made from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, fx, nn

from fxhash.capture.exported import Model, as_module
from fxhash.errors import CheckpointError, PlanError, TransformError
from fxhash.lowering.factor_store import find_factor_store
from fxhash.smh.generator import find_generator
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.plan import CompressionPlan
from fxhash.smh.selection import describe_parameters
from fxhash.storage.atomic import replacing
from fxhash.storage.paths import read_path
from fxhash.storage.quantization import dequantized, quantized
from fxhash.transformed import current_plan, rebuild, refuse_transformed

PathLike: TypeAlias = str | os.PathLike[str]

_KEY = "fxhash"
# Of the generator's parameters that may be quantized, the dimension whose entries share a step in 8 bits.
_SHARES_A_STEP = {"right": 1, "left": 0, "more_left": 0, "kernels": 1}


def save(gm: fx.GraphModule, path: PathLike, *, dtype: torch.dtype | None = None) -> None:
    """Write a transformed model to one `.safetensors` file.

    The file is complete or not there: it is written under another name in the same folder and then renamed.

    Args:
        gm: a transformed model, on any device.
        path: where to write; an existing file is replaced.
        dtype: type to store the factors in: `torch.bfloat16`, `torch.float16`, or `torch.int8` with a step size a rank
            of each; as they are if omitted. `load` gives the type of the model again, with rounded values.

    Raises:
        PlanError: for another type.
        TransformError: if `gm` is not a transformed model.
        CheckpointError: if it has no values yet, the type can't hold them, or the file can't be written.
    """
    if find_factor_store(gm) is not None:
        raise TransformError("this model is lowered already: save the transformed model that it was made of")
    plan = current_plan(gm).to_json()
    tensors = _distinct_tensors(gm)
    if dtype is not None:
        tensors = quantized(tensors, _factors(gm), dtype)
    # One key, since safetensors writes several in an order that changes from process to process.
    metadata = {_KEY: json.dumps({"sha256": _digest(plan, tensors), "plan": plan})}
    target = read_path(path)
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(to_safetensors(tensors, metadata))
    except OSError as error:
        raise CheckpointError(f"{target} can't be written: {error}") from error


def load(path: PathLike, model: Model) -> fx.GraphModule:
    """Rebuild a transformed model from a file and the code of the model that it was made of.

    Args:
        path: a file that `save` wrote.
        model: the original model, freshly built or exported; its values don't matter and it is left untouched. It may
            be on the meta device, which saves allocating its dense weights: the result is then on the CPU.

    Returns:
        The transformed model, on the device and in the mode of `model`.

    Raises:
        CheckpointError: if the file can't be read, is damaged, or doesn't fit the model; the message names the
            first parameter that differs.
    """
    model = as_module(model)
    refuse_transformed(model)
    plan, tensors = _read(read_path(path))
    _check_fit(plan, model, path)
    gm = rebuild(model, plan)
    aliases = _aliases(gm)
    state = gm.state_dict()
    tensors = dequantized(tensors, state, _factors(gm))
    _check_tensors({name: tensor for name, tensor in state.items() if aliases[name] == name}, tensors, path)
    on_meta = any(tensor.is_meta for tensor in state.values())
    # Updated, not made anew: a state dict also carries the versions of the modules' formats.
    state.update({name: tensors[first] for name, first in aliases.items()})
    gm.load_state_dict(state, strict=True, assign=on_meta)
    for name, buffer in gm.named_buffers():
        if buffer.is_meta and buffer.numel():
            raise CheckpointError(
                f"buffer {name!r} is not part of the state dict and has no value on the meta device: build the model "
                "on a real device"
            )
    return gm


def read_plan(path: PathLike) -> CompressionPlan:
    """The plan of a file that `save` wrote, after checking the whole file.

    Raises:
        CheckpointError: if the file can't be read or is damaged.
    """
    plan, _ = _read(Path(path))
    return plan


def _read(path: Path) -> tuple[CompressionPlan, dict[str, Tensor]]:
    """Plan and tensors of a file, checked against its digest."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path} can't be read: it is truncated or no safetensors file ({error})") from error
    if _KEY not in metadata:
        raise CheckpointError(f"{path} was not written by fxhash.save: it has no plan in its metadata")
    try:
        stored = json.loads(metadata[_KEY])
        plan, digest = str(stored["plan"]), stored["sha256"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its metadata can't be read ({error})") from error
    if _digest(plan, tensors) != digest:
        raise CheckpointError(f"{path} is damaged: its content does not have the digest that was stored with it")
    try:
        return CompressionPlan.from_json(plan), tensors
    except PlanError as error:
        raise CheckpointError(f"{path} holds a plan that can't be used: {error}") from error


def _digest(plan: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the plan and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(plan.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    aliases = _aliases(gm)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if aliases[name] == name}


def _factors(gm: fx.GraphModule) -> dict[str, int]:
    """Names of factors and kernels in the state dict, and the dimension whose entries share a step in 8 bits."""
    generator = find_generator(gm)
    assert generator is not None
    (prefix,) = (path for path, module in gm.named_modules() if module is generator)
    named = [(name, name.partition(".")[0]) for name, _ in generator.named_parameters()]
    return {f"{prefix}.{name}": _SHARES_A_STEP[kind] for name, kind in named if kind in _SHARES_A_STEP}


def _aliases(gm: fx.GraphModule) -> dict[str, str]:
    """For each name in the state dict, the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in gm.state_dict(keep_vars=True).items()}


def _check_fit(plan: CompressionPlan, model: nn.Module, path: PathLike) -> None:
    """Raise CheckpointError at the first parameter that the plan and the model describe differently."""
    described = {parameter.fqn: parameter for parameter in describe_parameters(model)}
    unused = set(plan.unused)
    for stored in plan.parameters:
        in_model = described.get(stored.fqn)
        if in_model is None:
            raise CheckpointError(f"{path} does not fit this model, which has no parameter {stored.fqn!r}")
        if _traits(stored) != _traits(in_model):
            raise CheckpointError(
                f"{path} does not fit this model: parameter {stored.fqn!r} is {_traits(stored)} in the file and "
                f"{_traits(in_model)} in the model"
            )
        del described[stored.fqn]
    for fqn in described:
        if fqn not in unused:
            raise CheckpointError(f"{path} does not fit this model, whose parameter {fqn!r} is not in the file")


def _traits(parameter: ParameterPlan) -> str:
    shape = "x".join(map(str, parameter.shape)) or "scalar"
    tied = f", tied to {', '.join(parameter.aliases)}" if parameter.aliases else ""
    return f"{shape} {parameter.dtype}{tied}"


def _check_tensors(expected: dict[str, Tensor], tensors: dict[str, Tensor], path: PathLike) -> None:
    """Raise CheckpointError unless file and model have the same tensors, before any of them is set."""
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise CheckpointError(f"{path} lacks the tensor {name!r} that this model needs")
        if name not in expected:
            raise CheckpointError(f"{path} holds the tensor {name!r}, for which this model has no place")
        if expected[name].shape != tensors[name].shape or expected[name].dtype != tensors[name].dtype:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tuple(tensors[name].shape)} {tensors[name].dtype}, but this model "
                f"needs {tuple(expected[name].shape)} {expected[name].dtype}"
            )
