"""What a file holds of a model: the tensors of its state dict, by the names in the original model, each once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxhash.errors import CheckpointError
from fxhash.graph.names import joined, original_name
from fxhash.smh.generator import SMHGenerator
from fxhash.storage.quantization import dequantize_
from fxhash.transformed import generator_of

# Of the generator's parameters that may be quantized, the dimension whose entries share a step in 8 bits.
_SHARES_A_STEP = {"right": 1, "left": 0, "more_left": 0, "kernels": 1}


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
    return {
        original_name(name): tensor.detach().cpu().contiguous() for name, tensor in state.items() if first[name] == name
    }


def expected_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a file of this model holds, of which only shapes and types count."""
    first = first_names(model)
    return {original_name(name): tensor for name, tensor in model.state_dict().items() if first[name] == name}


def factors(parts: Mapping[str, fx.GraphModule]) -> dict[str, int]:
    """Names of factors and kernels in the state dict, and the dimension whose entries share a step in 8 bits.

    Args:
        parts: the transformed models in a model, by their paths.
    """
    return {
        joined(prefix, name): _SHARES_A_STEP[kind]
        for prefix, generator in _generators(parts).items()
        for name in generator.state_dict()
        if (kind := name.split(".")[0]) in _SHARES_A_STEP
    }


def trained_otherwise(model: nn.Module, parts: Mapping[str, fx.GraphModule]) -> set[str]:
    """Names of the trained parameters that are in no transformed model."""
    of_parts = {id(parameter) for part in parts.values() for parameter in part.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad and id(parameter) not in of_parts}


@torch.no_grad()
def fill_generators(
    parts: Mapping[str, fx.GraphModule], stored: Mapping[str, Tensor], devices: Mapping[str, torch.device | str]
) -> None:
    """Take memory for the generators, which are on the meta device, and set them to what was stored."""
    for path, part in parts.items():
        generator_of(part).to_empty(device=devices[path])
    for prefix, generator in _generators(parts).items():
        for name, tensor in generator.state_dict().items():
            dequantize_(tensor, joined(prefix, name), stored)


def fill_others(model: nn.Module, parts: Mapping[str, fx.GraphModule], stored: Mapping[str, Tensor]) -> None:
    """Set all tensors but the generators' to what was stored, in new memory where they are on the meta device."""
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
            value = stored[original_name(first_name)]
            # A copy, since what was stored is a view of the file; one parameter for all of its names.
            value = value.clone() if on_meta else value
            is_parameter = on_meta and first_name in parameters
            values[first_name] = nn.Parameter(value, requires_grad=False) if is_parameter else value
    # Updated, not made anew: a state dict also carries the versions of the modules' formats.
    state.update({name: values[first[name]] for name in state})
    model.load_state_dict(state, strict=False, assign=on_meta)


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
