"""What torch's exporter and compiler tell a terminal, kept from it: pages, where they can't take a model."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO

# Packages whose loggers tell what an export comes upon, and modules that make such loggers when they are imported.
_LOGGING = ("torch", "onnxscript", "onnx_ir")
_LOGGERS_OF = ("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "torch.onnx")

# What is silenced belongs to the process: one export at a time.
_lock = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Without their logs; and if an error ends the block, without what they printed to stderr, graphs above all.

    What is printed meanwhile is shown afterwards if there is no error; what other threads print, at once. Nothing is
    kept from the terminal if the environment has TORCH_LOGS. Other threads wait until the block is over.
    """
    with _lock:
        yield from _quiet()


def _quiet() -> Iterator[None]:
    if "TORCH_LOGS" in os.environ:
        yield
        return
    for name in _LOGGERS_OF:
        importlib.import_module(name)
    known = logging.root.manager.loggerDict.items()
    loggers = [each for name, each in known if name.split(".")[0] in _LOGGING and isinstance(each, logging.Logger)]
    silenced = [each for each in loggers if not each.disabled]
    stream = sys.stderr
    printed = _OfThisThread(stream)
    try:
        for logger in silenced:
            logger.disabled = True
        with redirect_stderr(printed):
            yield
    finally:
        for logger in silenced:
            logger.disabled = False
    if printed.getvalue():
        stream.write(printed.getvalue())


class _OfThisThread(io.StringIO):
    """Keeps what the thread writes that made it; what others write goes to a stream.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str, /) -> int:
        return super().write(text) if threading.get_ident() == self._thread else self._stream.write(text)
