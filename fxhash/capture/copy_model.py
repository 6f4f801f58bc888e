"""Copies of models that share nothing with the original but what may be large."""

from __future__ import annotations

import copy
import random
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from types import CellType, FunctionType, ModuleType
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, fx, nn

from fxhash.capture.foreign_modules import own_script_parameters_
from fxhash.capture.references import references_from, references_of
from fxhash.errors import TransformError
from fxhash.smh.parameters import tied_groups

Model = TypeVar("Model", bound=nn.Module)

# Of copying a model that computes tensors at each call: another thread may call it meanwhile.
_ATTEMPTS = 10


def copy_model(model: Model, shared: Collection[str] = ()) -> Model:
    """A deep copy that keeps ties between parameters, also of what functions in the model's attributes close over.

    Args:
        model: the module to copy; it is left untouched.
        shared: fully qualified names of parameters and buffers that the copy shares with the original.

    Raises:
        TransformError: if something that the model holds can't be copied.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _copy(model, shared)
        except TransformError:
            raise
        except Exception as error:
            failure = error
            if not any(True for module in model.modules() for _ in _computed_tensors(module)):
                break
    raise TransformError(
        f"{type(model).__name__} can't be copied by copy.deepcopy, which leaving it untouched needs: "
        f"{type(failure).__name__}: {failure}"
    ) from failure


def _copy(model: Model, shared: Collection[str]) -> Model:
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
            # As `copy.deepcopy` does: while the value lives, no other object gets its id.
            memo.setdefault(id(memo), []).append(value)
    for module in model.modules():
        for value in vars(module).values():
            # Of Python's or numpy's own generator: a copy would no longer follow its seed.
            if getattr(value, "__self__", None) in (random._inst, np.random.mtrand._rand):
                memo[id(value)] = value
    functions = _functions_of(model)
    memo.update({id(function): _with_own_cells(function, cells) for function, cells in functions.items()})
    copied_model = copy.deepcopy(model, memo)
    for function, cells in functions.items():
        _fill(memo[id(function)], function, cells, memo)
    _renew_weak_references(copied_model, memo)
    own_script_parameters_(copied_model, model)
    return copied_model


def _functions_of(model: nn.Module) -> dict[FunctionType, frozenset[int]]:
    """Functions in the attributes of modules that refer to a part of the model, and which of their cells do.

    Whatever else a function refers to is its own, and not copied: a list in which a hook collects its outputs.
    """
    tensors = (*model.parameters(), *model.buffers())
    tables = [value for module in model.modules() for value in vars(module).values() if isinstance(value, OrderedDict)]
    # A hook may hold the handle of itself, by which it leaves the dictionary of hooks.
    parts = {id(each) for each in (*model.modules(), *tensors, *tables)}

    def refers(value: Any) -> bool:
        return any(id(reference.target) in parts for reference in references_from(value))

    found: dict[FunctionType, frozenset[int]] = {}
    for module in model.modules():
        for reference in references_of(module, with_class=False):
            function = reference.target
            if isinstance(function, FunctionType) and function not in found:
                cells = function.__closure__ or ()
                copied = frozenset(index for index, cell in enumerate(cells) if refers(cell))
                if copied or refers((function.__defaults__, function.__kwdefaults__, vars(function))):
                    found[function] = copied
    return found


def _with_own_cells(function: FunctionType, copied: Collection[int]) -> FunctionType:
    cells = tuple(CellType() if i in copied else cell for i, cell in enumerate(function.__closure__ or ()))
    return FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)


def _fill(copied: FunctionType, function: FunctionType, cells: Collection[int], memo: dict[int, Any]) -> None:
    for index, (cell, original) in enumerate(zip(copied.__closure__ or (), function.__closure__ or (), strict=True)):
        if index in cells:
            cell.cell_contents = copy.deepcopy(original.cell_contents, memo)
    copied.__defaults__ = copy.deepcopy(function.__defaults__, memo)
    copied.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, memo)
    copied.__qualname__, copied.__module__, copied.__doc__ = (
        function.__qualname__,
        function.__module__,
        function.__doc__,
    )
    vars(copied).update(copy.deepcopy(vars(function), memo))


def _renew_weak_references(model: nn.Module, memo: Mapping[int, Any]) -> None:
    """Let weak references among the attributes of a copy point to the copies."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, weakref.ref) and isinstance(value(), nn.Module) and id(value()) in memo:
                vars(module)[name] = weakref.ref(memo[id(value())])


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
