"""Watches the Python code that a trace runs, for what no proxy sees."""

from __future__ import annotations

import contextlib
import dis
import gc
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, CodeType, FrameType, ModuleType
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import stateless

from fxhash.capture.hazards import Hazard, hazards_of
from fxhash.capture.kept_state import KeptState
from fxhash.capture.user_code import is_user_code
from fxhash.capture.wrapped_functions import RecordedFunctions

LocalTrace: TypeAlias = Callable[[FrameType, str, Any], Any]

# Functions of libraries that a graph would forget, or that a graph can't hold.
_REFUSED: dict[CodeType, str] = {
    torch.autocast.__enter__.__code__: "switches autocast on or off",
    saved_tensors_hooks.__enter__.__code__: "checkpoints, or saves tensors in its own way",
    stateless._functional_call.__code__: "calls a module with other parameters",
    torch.inference_mode.__enter__.__code__: "switches inference mode on or off",
    torch.set_grad_enabled.__init__.__code__: "switches gradients on or off",
    torch.enable_grad.__enter__.__code__: "switches gradients on or off",
}
_SUPPRESS = contextlib.suppress.__enter__.__code__
_TRACER = os.path.join(os.path.dirname(__file__), "tracer.py")
_PYTREE = os.path.join("torch", "utils", "_pytree.py")
_COMPILED = os.path.join("_dynamo", "eval_frame.py")
# Code that Python runs on its own account: of a module that is imported, and of an object that goes.
_CALLED_BY_PYTHON = ("<module>", "__del__")
# What a forward may ask of its surroundings, which may be others at the next call, or do to them.
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


class Observer:
    """Watches one thread while it traces, and refuses by `refuse` what a graph would forget.

    Args:
        functions: gets to know these variables, too.
        state: gets to know the variables around the functions that run.
        refuse: is told what a forward does, such as `"catches errors"`; raises.
    """

    def __init__(self, state: KeptState, functions: RecordedFunctions, refuse: Callable[[str], NoReturn]) -> None:
        self._state = state
        self._functions = functions
        self._refuse = refuse
        self._hazards: dict[int, tuple[Hazard, ...] | None] = {}
        self._codes: list[CodeType] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the thread until the end of the block; a debugger or coverage tool is set aside for it."""
        before = sys.gettrace()
        self.watch()
        try:
            yield
        finally:
            sys.settrace(before)

    def watch(self) -> None:
        """Go on watching: Python stops it where it raises an error."""
        sys.settrace(self._on_event)

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> LocalTrace | None:
        code = frame.f_code
        hazards = self._hazards.get(id(code), _UNSEEN)
        if hazards is _UNSEEN:
            if is_user_code(code) and _is_importing(frame):
                return None
            hazards = self._first_call(frame)
            if not _depends_on_caller(code):
                self._hazards[id(code)] = hazards
                # So that no other code can get its id.
                self._codes.append(code)
        if not hazards:
            return None

        def on_line(frame: FrameType, event: str, argument: Any) -> LocalTrace:
            if event == "line":
                for hazard in hazards:
                    if hazard.first <= frame.f_lineno <= hazard.last and hazard.applies(frame):
                        self._refuse(hazard.what)
            return on_line

        return on_line

    def _first_call(self, frame: FrameType) -> tuple[Hazard, ...]:
        """What to look out for in a function, which is about to run for the first time."""
        code = frame.f_code
        if code in _REFUSED:
            self._refuse(_REFUSED[code])
        if _depends_on_caller(code) and frame.f_back is not None and is_user_code(frame.f_back.f_code):
            takes_apart = code.co_filename.endswith(_PYTREE)
            what = "takes containers apart" if takes_apart else "calls compiled code"
            self._refuse("catches errors" if code is _SUPPRESS else what)
        if not is_user_code(code) or code.co_name in _CALLED_BY_PYTHON or _collects_garbage(code):
            return ()
        reason = _reason_by_names(code, frame.f_globals)
        if reason is not None:
            self._refuse(reason)
        self._state.remember_around(code, frame.f_globals)
        self._functions.replace_in(frame.f_globals)
        hazards = hazards_of(code)
        if hazards is None:
            self._refuse(f"has code that can't be read, in {code.co_name}()")
        return hazards


_UNSEEN: Any = object()


def _depends_on_caller(code: CodeType) -> bool:
    """Whether a function is refused where a model calls it, but not where torch does."""
    return code is _SUPPRESS or code.co_filename.endswith((_COMPILED, _PYTREE))


def _collects_garbage(code: CodeType) -> bool:
    return any(getattr(callback, "__code__", None) is code for callback in gc.callbacks)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a function runs on behalf of an import in the code that is traced."""
    while frame is not None and frame.f_code.co_filename != _TRACER:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


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


@contextmanager
def noticing_draws() -> Iterator[list[str]]:
    """Notice which functions that this thread runs draw random numbers of Python or numpy; gives their names."""
    found: list[str] = []
    seen: set[CodeType] = set()

    def on_call(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if code not in seen:
            seen.add(code)
            if is_user_code(code) and _reason_by_values(code, frame.f_globals) == "draws random numbers":
                found.append(code.co_name)

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield found
    finally:
        sys.settrace(before)


def _reason_by_names(code: CodeType, variables: dict[str, Any]) -> str | None:
    """Why a function can't be traced, by the names that it uses."""
    for name in code.co_names:
        if name in _SURROUNDINGS:
            return _SURROUNDINGS[name]
    reason = _reason_by_values(code, variables)
    if reason is None and _assigns_outside(code):
        return "changes a variable outside of it"
    return reason


def _reason_by_values(code: CodeType, variables: dict[str, Any]) -> str | None:
    """What a function does by what its names stand for that is something else at each call."""
    for name in code.co_names:
        value = variables.get(name)
        if type(value) is BuiltinFunctionType and value in _ASKED:
            return _SURROUNDINGS[_ASKED[value]]
        owner = value if isinstance(value, ModuleType) else getattr(value, "__self__", None)
        for module, reason in _CHANGING_MODULES.items():
            drawn = owner is module or (
                value is not owner and isinstance(owner, (random.Random, np.random.RandomState))
            )
            if drawn or getattr(value, "__module__", None) == module.__name__:
                return reason
        if value is np and "random" in code.co_names:
            return "draws random numbers"
    for operation in dis.get_instructions(code):
        if operation.opname == "IMPORT_NAME" and operation.argval in _CHANGING_NAMES:
            return _CHANGING_NAMES[operation.argval]
    return None


def _assigns_outside(code: CodeType) -> bool:
    """Whether a function assigns to a variable of its module, or of a function around it."""
    return any(
        operation.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
        or (operation.opname in ("STORE_DEREF", "DELETE_DEREF") and operation.argval in code.co_freevars)
        for operation in dis.get_instructions(code)
    )
