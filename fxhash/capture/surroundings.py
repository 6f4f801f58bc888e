"""What a forward may ask of its surroundings, which may be others at the next call, or do to them; found by names."""

from __future__ import annotations

import dis
import random
import secrets
import sys
import time
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from fxhash.capture.hazards import Hazard

_SURROUNDINGS = {
    "is_grad_enabled": "asks whether gradients are on",
    "is_inference_mode_enabled": "asks whether inference mode is on",
    "is_autocast_enabled": "asks whether autocast is on",
    "is_autocast_cpu_enabled": "asks whether autocast is on",
    "get_autocast_dtype": "asks whether autocast is on",
    "get_autocast_gpu_dtype": "asks whether autocast is on",
    "get_default_dtype": "asks for the default type",
    "get_default_device": "asks for the default device",
    "set_default_dtype": "changes the default type",
    "set_default_device": "changes the default device",
    "set_grad_enabled": "switches gradients on or off",
    "manual_seed": "seeds random numbers",
    "set_rng_state": "seeds random numbers",
    "fork_rng": "seeds random numbers",
    "Proxy": "asks whether it is traced",
    "are_deterministic_algorithms_enabled": "asks for settings of torch",
    "is_anomaly_enabled": "asks for settings of torch",
    "is_": "compares by operator.is_",
    "is_not": "compares by operator.is_not",
    "eval": "runs code of a string",
    "exec": "runs code of a string",
    "locals": "reads its own variables by name",
    "globals": "reads variables by name",
    "Thread": "starts threads",
    "ThreadPoolExecutor": "starts threads",
    "ContextVar": "reads a context variable",
    "is_fx_tracing": "asks whether it is traced",
    "is_fx_symbolic_tracing": "asks whether it is traced",
}
_CHANGING_MODULES: dict[ModuleType, str] = {
    random: "draws random numbers",
    secrets: "draws random numbers",
    np.random: "draws random numbers",
    time: "reads the time",
}


_CHANGING_NAMES = {module.__name__: reason for module, reason in _CHANGING_MODULES.items()}
_ASKED = {
    getattr(torch, name): name for name in _SURROUNDINGS if type(getattr(torch, name, None)) is BuiltinFunctionType
}


def keeps_changing_function(module: nn.Module) -> str | None:
    """What a function that a module keeps as an attribute does that a graph would forget; None if it keeps none."""
    for value in vars(module).values():
        owner = getattr(value, "__self__", None)
        if type(value) is BuiltinFunctionType and value in _ASKED:
            return _SURROUNDINGS[_ASKED[value]]
        if isinstance(owner, (random.Random, np.random.RandomState)):
            return "draws random numbers"
        for changing, reason in _CHANGING_MODULES.items():
            if owner is changing or value is changing:
                return reason
    return None


def hazards_by_names(code: CodeType, variables: dict[str, Any]) -> Iterator[Hazard]:
    """The lines of a function that can't be traced, by the names that they use.

    Args:
        code: the function's own code.
        variables: those of its module.
    """
    reasons = {name: reason for name in code.co_names if (reason := _reason_of(name, code, variables)) is not None}
    if not reasons and not _assigns_outside(code):
        return
    found = set()
    line = code.co_firstlineno
    for operation in dis.get_instructions(code):
        line = _line_of(operation) or line
        reason = reasons.get(operation.argval) if isinstance(operation.argval, str) else None
        if reason is not None:
            found.add(operation.argval)
            yield Hazard(line, line, (), {}, reason)
        elif _is_outside(operation, code):
            yield Hazard(line, line, (), {}, "changes a variable outside of it")
    for name in reasons.keys() - found:
        # An operation that is not known to have a name: the whole function is one.
        yield Hazard(0, sys.maxsize, (), {}, reasons[name])


def draws_random_numbers(code: CodeType, variables: dict[str, Any]) -> bool:
    """Whether a function may draw random numbers of Python or numpy, by the names that it uses."""
    return any(_reason_of_value(name, code, variables) == "draws random numbers" for name in code.co_names)


def _line_of(operation: dis.Instruction) -> int | None:
    positions = getattr(operation, "positions", None)
    return operation.starts_line if positions is None else positions.lineno


def _reason_of(name: str, code: CodeType, variables: dict[str, Any]) -> str | None:
    """What a function that uses a name does by it that a graph would forget."""
    return _SURROUNDINGS[name] if name in _SURROUNDINGS else _reason_of_value(name, code, variables)


def _reason_of_value(name: str, code: CodeType, variables: dict[str, Any]) -> str | None:
    """The same, by what the name stands for that is something else at each call."""
    value = variables.get(name)
    if type(value) is BuiltinFunctionType and value in _ASKED:
        return _SURROUNDINGS[_ASKED[value]]
    owner = value if isinstance(value, ModuleType) else getattr(value, "__self__", None)
    for module, reason in _CHANGING_MODULES.items():
        drawn = owner is module or (value is not owner and isinstance(owner, (random.Random, np.random.RandomState)))
        if drawn or getattr(value, "__module__", None) == module.__name__:
            return reason
    if value is np and "random" in code.co_names:
        return "draws random numbers"
    imports = name in _CHANGING_NAMES and any(
        operation.opname == "IMPORT_NAME" and operation.argval == name for operation in dis.get_instructions(code)
    )
    return _CHANGING_NAMES[name] if imports else None


def _assigns_outside(code: CodeType) -> bool:
    """Whether a function assigns to a variable of its module, or of a function around it."""
    return any(_is_outside(operation, code) for operation in dis.get_instructions(code))


def _is_outside(operation: dis.Instruction, code: CodeType) -> bool:
    return operation.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
        operation.opname in ("STORE_DEREF", "DELETE_DEREF") and operation.argval in code.co_freevars
    )
