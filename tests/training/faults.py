"""Makes the n-th write, flush or rename below a folder go wrong."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

KINDS = ("write", "flush", "rename")


class Fault:
    """Counts the operations of a kind, and does something in place of the n-th.

    Args:
        folder: where files are written to and renamed.
        kind: of `KINDS`.
        nth: which operation, from 1.
        happen: what to do. A write has written half by then, a rename nothing; a flush is of any file.
    """

    def __init__(self, folder: Path, kind: str, nth: int, happen: Callable[[], None]) -> None:
        self.folder = folder
        self.kind = kind
        self.nth = nth
        self.happen = happen
        self.count = 0

    @property
    def happened(self) -> bool:
        return self.count >= self.nth

    def install(self, set_attribute: Callable[[Any, str, Any], None]) -> None:
        """Replace the functions of the system with `set_attribute`, such as `monkeypatch.setattr`."""
        if self.kind == "write":
            open_file = partial(self._open, io.open)
            # A path opens files by `io.open`, and in Python 3.10 by its own reference to it.
            for holder in (builtins, io):
                set_attribute(holder, "open", open_file)
            set_attribute(Path, "open", lambda path, mode="r", *rest, **named: open_file(path, mode, *rest, **named))
        elif self.kind == "flush":
            set_attribute(os, "fsync", partial(self._instead, os.fsync))
        else:
            set_attribute(os, "replace", partial(self._rename, os.replace))

    def _instead(self, function: Callable[..., Any], *arguments: Any, half: Callable[[], None] = lambda: None) -> Any:
        self.count += 1
        if self.count == self.nth:
            half()
            self.happen()
        return function(*arguments)

    def _rename(self, replace: Callable[..., Any], source: Any, target: Any) -> Any:
        return self._instead(replace, source, target) if self._is_here(source) else replace(source, target)

    def _open(self, function: Callable[..., Any], file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        opened = function(file, mode, *arguments, **named)
        if "w" in mode and self._is_here(file):
            write = opened.write

            def write_half(content: Any) -> None:
                write(content[: len(content) // 2])
                opened.flush()

            opened.write = lambda content: self._instead(write, content, half=partial(write_half, content))
        return opened

    def _is_here(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and self.folder in Path(path).parents


def fail() -> None:
    """As on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def kill() -> None:
    """As `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(options: Any, folder: Path, kind: str, nth: int, temporary: Path) -> None:
    """Train in this process, and end it at an operation; temporary files would be in a folder of their own."""
    import torch
    from rich.console import Console

    from fxhash import training

    torch.set_num_threads(1)
    tempfile.tempdir = str(temporary)
    Fault(folder, kind, nth, kill).install(setattr)
    training.train(options, folder, console=Console(quiet=True))
