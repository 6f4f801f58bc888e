"""What a file holds of a model: the tensors of its state dict, by the names in the original model, each once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxhash.errors import CheckpointError
from fxhash.graph.names import joined, original_name
from fxhash.smh.generator import SMHGenerator
from fxhash.storage.quantization import FactorRows, dequantize_
from fxhash.transformed import generator_of


def distinct_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, each tensor under the first of its names, as it was in the original.

    Raises:
        CheckpointError: if something in it can't be stored.
    """
    state: dict[str, Any] = model.state_dict()
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
    first = first_names(model)
    stored, seen = {}, set()
    for name, tensor in state.items():
        if first[name] == name:
            value = tensor.detach().cpu().contiguous()
            # A file takes no two tensors that share memory, such as a buffer that is a view of another.
            storage = value.untyped_storage()._cdata
            stored[original_name(name)] = value.clone() if storage in seen else value
            seen.add(storage)
    return stored


def expected_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a file of this model holds, of which only shapes and types count."""
    first = first_names(model)
    return {original_name(name): tensor for name, tensor in model.state_dict().items() if first[name] == name}


def names_outside_generators(model: nn.Module, parts: Mapping[str, fx.GraphModule]) -> set[str]:
    """Names of the tensors in the state dict that no generator holds: what stayed dense, and buffers."""
    inside = {joined(prefix, name) for prefix, each in _generators(parts).items() for name in each.state_dict()}
    return {original_name(name) for name, first in first_names(model).items() if first == name and name not in inside}


def factor_rows(parts: Mapping[str, fx.GraphModule]) -> list[FactorRows]:
    """The factors and kernels in the state dict, which may be quantized.

    Args:
        parts: the transformed models in a model, by their paths.
    """
    return [rows for prefix, generator in _generators(parts).items() for rows in _rows_of(prefix, generator)]


def _rows_of(prefix: str, generator: SMHGenerator) -> Iterator[FactorRows]:
    trained, more, kernels = generator.plan.factor_bits, 0, 0
    yield FactorRows((joined(prefix, "right"),), "right", trained)
    for index, parameter in enumerate(generator.plan.hashed):
        names = [f"left.{index}"]
        if parameter.more_rows:
            names.append(f"more_left.{more}")
            more += 1
        yield FactorRows(tuple(joined(prefix, name) for name in names), "left", trained)
        if parameter.kernels:
            yield FactorRows((joined(prefix, f"kernels.{kernels}"),), "kernels", trained)
            kernels += 1


def trained_otherwise(model: nn.Module, parts: Mapping[str, fx.GraphModule]) -> set[str]:
    """Names of the trained parameters that are in no transformed model."""
    of_parts = {id(parameter) for part in parts.values() for parameter in part.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad and id(parameter) not in of_parts}


@torch.no_grad()
def fill_generators(
    parts: Mapping[str, fx.GraphModule],
    stored: Mapping[str, Tensor],
    devices: Mapping[str, torch.device | str],
    path: object,
) -> None:
    """Take memory for the generators, which are on the meta device, and set them to what was stored.

    Raises:
        CheckpointError: as of `dequantize_`, which names the path of the file.
    """
    for place, part in parts.items():
        generator_of(part).to_empty(device=devices[place])
    for prefix, generator in _generators(parts).items():
        tensors = {joined(prefix, name): tensor for name, tensor in generator.state_dict().items()}
        rows = list(_rows_of(prefix, generator))
        for each in rows:
            dequantize_(tensors, each, stored, path)
        for name in tensors.keys() - {name for each in rows for name in each.names}:
            tensors[name].copy_(stored[name])


def fill_others(model: nn.Module, parts: Mapping[str, fx.GraphModule], stored: Mapping[str, Tensor]) -> None:
    """Set all tensors but the generators' to what was stored, in new memory where they are on the meta device.

    Parameters that were frozen when the model was transformed are so again.
    """
    state, first = model.state_dict(), first_names(model)
    for prefix, generator in _generators(parts).items():
        for name in generator.state_dict():
            del state[joined(prefix, name)]
    on_meta = any(tensor.is_meta for tensor in state.values())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    values: dict[str, Tensor] = {}
    for name in state:
        first_name = first[name]
        if first_name not in values:
            value = stored[original_name(first_name)].to(state[name].dtype)
            # A copy, since what was stored is a view of the file; one parameter for all of its names.
            value = value.clone() if on_meta else value
            is_parameter = on_meta and first_name in parameters
            values[first_name] = nn.Parameter(value, requires_grad=False) if is_parameter else value
    # Updated, not made anew: a state dict also carries the versions of the modules' formats.
    state.update({name: values[first[name]] for name in state})
    model.load_state_dict(state, strict=False, assign=on_meta)
    for part in parts.values():
        frozen = {each.fqn for each in generator_of(part).plan.parameters if not each.trainable}
        for name, parameter in part.named_parameters():
            if original_name(name) in frozen:
                parameter.requires_grad_(False)


def first_names(model: nn.Module) -> dict[str, str]:
    """For each name in the state dict, the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}


def _generators(parts: Mapping[str, fx.GraphModule]) -> dict[str, SMHGenerator]:
    """The generators of transformed models, by their paths in the model that holds them."""
    return {
        joined(path, name): child
        for path, part in parts.items()
        for name, child in part.named_children()
        if isinstance(child, SMHGenerator)
    }
