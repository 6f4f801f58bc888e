"""Copies of models that share nothing with the original but what may be large."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, TypeVar

from torch import Tensor, nn

from fxhash.errors import TransformError
from fxhash.selection import tied_groups

Model = TypeVar("Model", bound=nn.Module)


def copy_model(model: Model, shared: Collection[str] = ()) -> Model:
    """A deep copy that keeps ties between parameters.

    Args:
        model: the module to copy; it is left untouched.
        shared: fully qualified names of parameters that the copy shares with the original.

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
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                # Computed values, such as the weight that the old `weight_norm` leaves behind, refuse to be copied:
                # https://github.com/pytorch/pytorch/pull/103001
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise TransformError(
            f"{type(model).__name__} can't be copied by copy.deepcopy, which leaving it untouched needs: "
            f"{type(error).__name__}: {error}"
        ) from error
