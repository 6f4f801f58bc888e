"""That a transformed model shares no weight with the original that it was made of."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxhash.capture.references import references_of
from fxhash.capture.replicas import is_made_by_hook
from fxhash.errors import TransformError
from fxhash.smh.parameters import tied_groups


def refuse_shared_memory(model: nn.Module, hashed: Collection[str]) -> None:
    """Refuse a model in which something else than the same parameter lies in the memory of a hashed one.

    Args:
        model: the original.
        hashed: fully qualified names of the parameters to hash.

    Raises:
        TransformError: naming both.
    """
    groups = [(names, tied) for names, tied in tied_groups(model) if any(name in hashed for name in names)]
    own = {id(parameter): names[0] for names, tied in groups for parameter in tied}
    memory = [(names[0], span) for names, tied in groups if (span := _span(tied[0])) is not None]
    by_storage: dict[Any, list[tuple[str, tuple[int, int]]]] = {}
    for name, (storage, first, last) in memory:
        by_storage.setdefault(storage, []).append((name, (first, last)))
    addresses = [(name, span) for names, tied in groups for name, span in _addresses(names[0], tied[0])]
    for path, value in _tensors_and_arrays(model):
        if isinstance(value, np.ndarray):
            start = value.__array_interface__["data"][0]
            found = [name for name, (first, last) in addresses if first <= start < last]
        else:
            span = _span(value)
            same = by_storage.get(span[0], []) if span is not None else []
            found = [name for name, (first, last) in same if span is not None and first <= span[2] and span[1] <= last]
        found = [name for name in found if name != own.get(id(value))]
        if found:
            raise TransformError(
                f"{path} lies in the memory of the parameter {found[0]!r}, and would not follow it when its weight is "
                f"generated: compute it in forward, or exclude {found[0]!r}"
            )


def refuse_gradient_hooks(model: nn.Module) -> None:
    """Raise TransformError if a parameter of a model has hooks that see its gradient: a copy would lack them."""
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise TransformError(
                f"the parameter {name!r} has hooks that see its gradient, which would be lost: remove them, and "
                "register them on parameters of the result"
            )


def refuse_originals(gm: nn.Module, model: nn.Module, hashed: Collection[str]) -> None:
    """Refuse a result from which a module of the original, or a hashed parameter of it, can be reached.

    Raises:
        TransformError: naming the path.
    """
    originals = {id(module): name for name, module in model.named_modules()}
    groups = tied_groups(model)
    originals |= {
        id(each): names[0] for names, tied in groups for each in tied if any(name in hashed for name in names)
    }
    for path, module in gm.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for reference in references_of(module):
            if isinstance(reference.target, (nn.Module, Tensor)) and id(reference.target) in originals:
                where = f"{path}.{reference.path}" if path else reference.path
                name = originals[id(reference.target)] or "the model itself"
                raise TransformError(
                    f"{where} refers to {name} of the original, which a copy of the model can't replace: reach it "
                    "from the module that uses it"
                )


def _tensors_and_arrays(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            for reference in references_of(module, with_class=False):
                made = is_made_by_hook(module, reference.path)
                if isinstance(reference.target, (Tensor, np.ndarray)) and not made:
                    yield f"{path}.{reference.path}" if path else reference.path, reference.target


def _span(tensor: Tensor) -> tuple[int, int, int] | None:
    """The storage of a tensor, and its first and last element in it; None where there is none."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return None
    size = tensor.element_size()
    first = tensor.storage_offset() * size
    extent = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage()._cdata, int(first), int(first + (extent + 1) * size - 1)


def _addresses(name: str, tensor: Tensor) -> Iterator[tuple[str, tuple[int, int]]]:
    if tensor.device.type == "cpu" and tensor.layout is torch.strided:
        yield name, (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)
