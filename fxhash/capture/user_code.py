"""Which code is a model's own, and not Python's, torch's or fxhash's."""

from __future__ import annotations

import os
import sysconfig
from functools import cache
from types import CodeType

import torch


def _folder(path: str) -> str:
    return os.path.join(os.path.realpath(path), "")


_STANDARD_LIBRARY = tuple(_folder(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
_INSTALLED = ("site-packages", "dist-packages")
_TORCH = _folder(os.path.dirname(torch.__file__))
_FXHASH = _folder(os.path.dirname(os.path.dirname(__file__)))
_ZOO = _folder(os.path.join(_FXHASH, "zoo"))


def is_user_code(code: CodeType) -> bool:
    """Whether code belongs to a model; that of torchvision and of the zoo does, too."""
    return _is_user_file(code.co_filename)


def is_recording_code(code: CodeType) -> bool:
    """Whether code is torch's or ours, which may ask a proxy what it likes."""
    return _is_of_recorder(code.co_filename)


@cache
def _is_of_recorder(name: str) -> bool:
    return os.path.realpath(name).startswith((_TORCH, _FXHASH)) and not _is_user_file(name)


@cache
def _is_user_file(name: str) -> bool:
    if name.startswith("<frozen "):
        return False
    path = os.path.realpath(name)
    if path.startswith((_TORCH, _FXHASH)):
        return path.startswith(_ZOO)
    return not path.startswith(_STANDARD_LIBRARY) or any(part in path for part in _INSTALLED)
