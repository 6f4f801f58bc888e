"""Modules whose class overrides `train()` or `eval()`: those that do no more than set the training flags are as others.

A graph module sets the flags of what it is made of, and doesn't call the `train()` of a class that it was traced from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fxhash.capture.copy_model import copy_model
from fxhash.capture.kept_state import KeptState


def overrides_modes(module: nn.Module) -> bool:
    """Whether the class of a module has a `train()` or `eval()` of its own."""
    return any(getattr(type(module), name) is not getattr(nn.Module, name) for name in ("train", "eval"))


def modules_with_own_modes(model: nn.Module) -> frozenset[str]:
    """Paths of the modules whose `train()` or `eval()` does more than set flags, or less; found by trying them.

    Args:
        model: the model; copies of its modules run.
    """
    paths = [path for path, module in model.named_modules() if overrides_modes(module)]
    return frozenset(path for path in paths if not _only_sets_flags(copy_model(model.get_submodule(path))))


def _only_sets_flags(module: nn.Module) -> bool:
    """Whether `train()` and `eval()` set the flags of a module and of those in it, and change nothing else."""
    values = [parameter.detach().clone() for parameter in module.parameters()]
    state = KeptState(module)
    calls: list[tuple[Callable[[], object], bool]] = [
        (module.train, True),
        (partial(module.train, False), False),
        (partial(module.train, True), True),
        (module.eval, False),
    ]
    return all(_sets_flags(module, call, mode, state) for call, mode in (*calls, *reversed(calls), *calls)) and all(
        map(_is_equal, module.parameters(), values)
    )


def _sets_flags(module: nn.Module, call: Callable[[], object], mode: bool, state: KeptState) -> bool:
    before = [each.training for each in module.modules()]
    try:
        result = call()
    except Exception:
        return False
    after = [each.training for each in module.modules()]
    for each, flag in zip(module.modules(), before, strict=True):
        vars(each)["training"] = flag
    unchanged = state.changed_in(module) is None and state.changed_around() is None
    return result is module and after == [mode] * len(before) and unchanged


def _is_equal(parameter: nn.Parameter, value: torch.Tensor) -> bool:
    return parameter.is_meta or parameter.is_sparse or torch.equal(parameter.detach().nan_to_num(), value.nan_to_num())
