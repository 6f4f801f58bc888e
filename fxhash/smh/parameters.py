"""The parameters of a model: which are the same, and whether they have a shape."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from fxhash.errors import TransformError
from fxhash.smh.checks import check_module


def dtype_name(dtype: torch.dtype) -> str:
    """The type's name without its prefix, such as `"float32"`."""
    return str(dtype).removeprefix("torch.")


def refuse_lazy(model: nn.Module) -> None:
    """Raise TransformError if a lazy module still has to learn the shape of a parameter, or `model` is no module."""
    check_module(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise TransformError(f"parameter {name!r} has no shape yet: run one batch through the lazy modules first")


def tied_groups(model: nn.Module) -> list[tuple[list[str], list[nn.Parameter]]]:
    """The names of each distinct parameter, in the order of `named_parameters()`.

    Two parameters are the same if they are one object, or the same view of one storage. None may be lazy.

    Raises:
        TransformError: if one is sparse, or otherwise without a storage of its elements.
    """
    groups: dict[Hashable, tuple[list[str], list[nn.Parameter]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        _refuse_sparse(name, parameter)
        names, parameters = groups.setdefault(_identity(parameter), ([], []))
        names.append(name)
        parameters.append(parameter)
    return list(groups.values())


def scripted_parameters(model: nn.Module) -> set[int]:
    """The `id`s of the parameters of script modules, which nothing can be put in the place of."""
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.jit.ScriptModule)
        for parameter in module.parameters()
    }


def _refuse_sparse(name: str, parameter: nn.Parameter) -> None:
    if parameter.layout is not torch.strided:
        raise TransformError(
            f"parameter {name!r} has the layout {parameter.layout}, whose elements can't be generated or stored: make "
            "it dense first, with nn.Parameter(parameter.detach().to_dense())"
        )


def _identity(parameter: nn.Parameter) -> Hashable:
    storage = parameter.untyped_storage()._cdata
    return storage, parameter.storage_offset(), parameter.shape, parameter.stride(), parameter.requires_grad
