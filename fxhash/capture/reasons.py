"""Why a module is opaque: what could not be followed, where its code does that, and the change that would help."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType, TracebackType

from torch import nn

from fxhash.capture.user_code import is_user_code

_OF_ITS_OWN = "in a module of its own that holds no weights"
# The change that helps, by a part of the reason: the first one that is found counts.
_HINTS = {
    "asks whether it is None": f"put the test {_OF_ITS_OWN}, or leave it out where the value is never None",
    "branches on a value that is a training flag": "let both branches do the same operations with other numbers, as "
    f"`p if self.training else 0.0` does, or put the branch {_OF_ITS_OWN}",
    "branches on a value": f"choose with torch.where, or put the branch {_OF_ITS_OWN}",
    "draws random numbers": "draw them with torch.rand_like(x) or the like, where x comes from the input",
    "makes a number of a value": "compute with the value itself",
    "makes an array of a value": "compute with torch instead of numpy",
    "iterates over a value": "unpack it into names (`a, b = x.chunk(2)`), or index it",
    "asks for the length": "ask for x.shape[0]",
    "asks for the type": f"leave the test out, or put it {_OF_ITS_OWN}",
    "asks by ": f"leave the test out, or put it {_OF_ITS_OWN}",
    "asks for the form": f"leave the test out, or put it {_OF_ITS_OWN}",
    "assigns to a part of a value": "make a new value, with torch.where, torch.cat or index_put",
    "catches errors": f"test beforehand, or put the block {_OF_ITS_OWN}",
    "switches ": f"put the block {_OF_ITS_OWN}",
    "asks whether ": f"put the test {_OF_ITS_OWN}",
    "checkpoints": "leave the checkpoint out, and give torch.utils.checkpoint the transformed model",
    "it has hooks": "remove the hooks before the transform",
    "overrides __call__": "override forward instead",
    "its forward was replaced": "define forward in the class",
    "changes ": f"put what it keeps {_OF_ITS_OWN}",
    "does more than set flags": "let train() and eval() set flags only",
}


@dataclass(frozen=True)
class Reason:
    """Why a module is opaque.

    Attributes:
        what: what can't be followed, in one line, such as `"its forward draws random numbers"`.
        where: the line of the model's code that does it, such as `"net.py:12 in forward"`; empty where there is none.
    """

    what: str
    where: str = ""

    @property
    def hint(self) -> str:
        """The change of the model's code that would help; an empty string where none is known."""
        return next((hint for part, hint in _HINTS.items() if part in self.what), "")

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" if self.where else self.what


def where_raised(traceback: TracebackType | None, module: nn.Module) -> str:
    """The line of the model's code that an error comes from; if there is none, where the forward of a module begins.

    Of a function that is no method of a module, the line that calls it is given too.

    Args:
        traceback: that of the error, as it was caught around the call of the module's forward.
        module: the module.
    """
    inner, outer = "", ""
    for code, line, is_method in _entries(traceback):
        inner = _shown(code, line)
        outer = inner if is_method else outer
    if not inner:
        forward = getattr(type(module).forward, "__wrapped__", type(module).forward)
        is_known = isinstance(forward, FunctionType) and is_user_code(forward.__code__)
        return _shown(forward.__code__, forward.__code__.co_firstlineno) if is_known else ""
    return inner if outer in ("", inner) else f"{inner}, called by {outer}"


def where_in(frame: FrameType) -> str:
    """The line that a frame runs."""
    return _shown(frame.f_code, frame.f_lineno)


def _entries(traceback: TracebackType | None) -> Iterator[tuple[CodeType, int, bool]]:
    """The model's own code in a traceback: its lines, and whether they are those of a method of a module."""
    while traceback is not None:
        frame = traceback.tb_frame
        if is_user_code(frame.f_code):
            first = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
            yield frame.f_code, traceback.tb_lineno, isinstance(first, nn.Module)
        traceback = traceback.tb_next


def _shown(code: CodeType, line: int) -> str:
    return f"{_shortened(code.co_filename)}:{line} in {code.co_name}"


def _shortened(path: str) -> str:
    """The path of a file as short as it still says which one it is."""
    for folder in (os.getcwd(), sysconfig.get_path("purelib")):
        if path.startswith(os.path.join(folder, "")):
            return os.path.relpath(path, folder)
    return path
