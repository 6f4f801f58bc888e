"""Copies of models that share nothing with the original but what may be large."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

from torch import Tensor, fx, nn

from fxhash.capture.foreign_modules import own_script_parameters_
from fxhash.errors import TransformError
from fxhash.smh.parameters import tied_groups

Model = TypeVar("Model", bound=nn.Module)


def copy_model(model: Model, shared: Collection[str] = ()) -> Model:
    """A deep copy that keeps ties between parameters.

    Args:
        model: the module to copy; it is left untouched.
        shared: fully qualified names of parameters and buffers that the copy shares with the original.

    Raises:
        TransformError: if something that the model holds can't be copied.
    """
    memo: dict[int, Any] = {}
    for names, parameters in tied_groups(model):
        if any(name in shared for name in names):
            memo.update({id(parameter): parameters[0] for parameter in parameters})
        elif len({id(parameter) for parameter in parameters}) > 1:
            # torch copies the storage once a parameter, which would untie them.
            copied = copy.deepcopy(parameters[0])
            memo.update({id(parameter): copied for parameter in parameters})
    buffers = model.named_buffers(remove_duplicate=False)
    memo.update({id(buffer): buffer for name, buffer in buffers if name in shared})
    for module in model.modules():
        # Computed values, such as the weight that the old `weight_norm` leaves behind, refuse to be copied:
        # https://github.com/pytorch/pytorch/pull/103001
        for value in _computed_tensors(module):
            memo[id(value)] = value.detach().clone()
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:
        raise TransformError(
            f"{type(model).__name__} can't be copied by copy.deepcopy, which leaving it untouched needs: "
            f"{type(error).__name__}: {error}"
        ) from error
    own_script_parameters_(result, model)
    return result


def _computed_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Tensors with a history among the attributes of a module, in containers and plain objects too."""
    pending: list[Any] = list(vars(module).values())
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, (nn.Module, fx.Graph, type, ModuleType)):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            pending.extend(value)
        else:
            pending.extend(getattr(value, "__dict__", {}).values())
