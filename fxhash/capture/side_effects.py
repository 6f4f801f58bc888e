"""Side effects of a forward that is traced: refused where they would be lost, undone where they are left behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxhash.capture.untraceable import UntraceableError


@contextmanager
def restoring_attributes(root: nn.Module) -> Iterator[None]:
    """Undo what a traced forward leaves behind in its modules, such as a cached activation that is now a proxy."""
    tables = ("_parameters", "_buffers", "_modules")
    modules = [module for module in root.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module, dict(vars(module)), {name: dict(vars(module)[name]) for name in tables}) for module in modules]
    plain = [value for module in modules for value in vars(module).values() if isinstance(value, Tensor)]
    values = [(tensor, _version(tensor), tensor.detach().clone()) for tensor in plain]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                vars(module)[name].clear()
                vars(module)[name].update(content)
        for tensor, version, value in values:
            if _version(tensor) != version:
                tensor.detach().copy_(value)


@contextmanager
def preserving_random_state() -> Iterator[None]:
    """Leave the random numbers of torch (on the CPU), Python and numpy as if none had been drawn."""
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)


@contextmanager
def refusing_side_effects(module: nn.Module) -> Iterator[None]:
    """Refuse what would happen while tracing instead of at each call; on any error, undo it.

    That is: random numbers that are drawn outside of any traced operation, buffers that are assigned anew, plain
    attributes that count calls, and tensors that are changed in place; by the module or by one nested in it.

    Raises:
        UntraceableError: at the end of the block; it names the first attribute that was changed.
    """
    random_state = _random_state()
    before = [(each, _state_of(each)) for each in module.modules() if not isinstance(each, torch.jit.ScriptModule)]
    try:
        yield
        if not _is_random_state(random_state):
            raise UntraceableError("its forward draws random numbers outside of any traced operation")
        for each, state in before:
            now = _state_of(each)
            changed = [name for name, value in state.items() if name not in now or not _is_same(now[name], value)]
            if changed:
                raise UntraceableError(f"its forward changes its attribute {changed[0]!r}")
    except Exception:
        _set_random_state(random_state)
        for each, state in before:
            each._buffers.update({name: value for name, (value, _) in state.items() if name in each._buffers})
            vars(each).update({name: value for name, (value, _) in state.items() if name in vars(each)})
        raise


def _state_of(module: nn.Module) -> dict[str, tuple[Any, int]]:
    """Buffers, plain tensors, and plain numbers and strings of a module, each with its version if it is a tensor."""
    values = {**module._buffers, **vars(module)}
    return {
        name: (value, _version(value) if isinstance(value, Tensor) else 0)
        for name, value in values.items()
        if isinstance(value, (Tensor, bool, int, float, str)) or name in module._buffers
    }


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors that were made in inference mode don't count."""
    return 0 if tensor.is_inference() else tensor._version


def _is_same(now: tuple[Any, int], before: tuple[Any, int]) -> bool:
    if isinstance(before[0], Tensor):
        return now[0] is before[0] and now[1] == before[1]
    return type(now[0]) is type(before[0]) and bool(now[0] == before[0])


def _random_state() -> tuple[Tensor, object, Any]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)


def _is_random_state(state: tuple[Tensor, object, Any]) -> bool:
    torch_state, python_state, numpy_state = _random_state()
    return (
        torch.equal(torch_state, state[0])
        and python_state == state[1]
        and numpy_state["state"]["pos"] == state[2]["state"]["pos"]
        and bool((numpy_state["state"]["key"] == state[2]["state"]["key"]).all())
    )


def _set_random_state(state: tuple[Tensor, Any, Any]) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])
