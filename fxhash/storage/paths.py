"""Paths that users give."""

from __future__ import annotations

import os
from pathlib import Path

from fxhash.errors import CheckpointError, shown

_LONGEST = 4096


def read_path(path: object) -> Path:
    """The absolute path that a string or an `os.PathLike` of strings stands for, with links followed.

    Raises:
        CheckpointError: for anything else, and for what no file can be called.
    """
    try:
        if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
            raise TypeError("that is neither a string nor a pathlib.Path")
        if len(os.fsencode(path)) > _LONGEST:
            raise ValueError(f"it is longer than {_LONGEST:,} bytes")
        return Path(path).resolve()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"path={shown(path)} can't be a file: {shown(str(error), 200)}") from error
