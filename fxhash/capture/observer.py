"""Watches the Python code that a trace runs, for what no proxy sees."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType
from typing import Any, NoReturn, TypeAlias

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import stateless

from fxhash.capture.hazards import Hazard, hazards_of
from fxhash.capture.kept_state import KeptState
from fxhash.capture.surroundings import draws_random_numbers, hazards_by_names
from fxhash.capture.user_code import is_user_code
from fxhash.capture.weightless_functions import weightless_functions_in
from fxhash.capture.wrapped_functions import Called, RecordedFunctions

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
        # Where functions of the model's own code are replaced: variables by their id, and a name.
        self._recorded: set[tuple[int, str]] = set()

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

    def record_function(self, error: BaseException, record: Callable[..., Any]) -> Callable[[], None] | None:
        """Let one node call a function that was running when an error was raised.

        Args:
            error: the error.
            record: makes the node, of the function, a value and the arguments.

        Returns:
            What lets the function be followed again; None if there is none to be called.
        """
        for called in weightless_functions_in(error.__traceback__):
            place = (id(called.variables), called.name)
            if place not in self._recorded:
                before = called.variables[called.name]
                self._recorded.add(place)
                self._functions.replace_called(called, record)
                return partial(self._follow_again, called, before)
        return None

    def _follow_again(self, called: Called, before: Any) -> None:
        self._recorded.discard((id(called.variables), called.name))
        called.variables[called.name] = before

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
        self._state.remember_around(code, frame.f_globals)
        self._functions.replace_for(code, frame.f_globals)
        hazards = hazards_of(code)
        if hazards is None:
            self._refuse(f"has code that can't be read, in {code.co_name}()")
        return (*hazards, *hazards_by_names(code, frame.f_globals))


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


@contextmanager
def noticing_draws() -> Iterator[list[str]]:
    """Notice which functions that this thread runs draw random numbers of Python or numpy; gives their names."""
    found: list[str] = []
    seen: set[CodeType] = set()

    def on_call(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if code not in seen:
            seen.add(code)
            if is_user_code(code) and draws_random_numbers(code, frame.f_globals):
                found.append(code.co_name)

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield found
    finally:
        sys.settrace(before)
