"""Paths that users give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from fxhash.errors import CheckpointError, shown

PathLike: TypeAlias = str | os.PathLike[str]

_LONGEST = 4096
# Of files that other programs would take for something else than it is.
_OF_OTHER_FORMATS = {
    *(".pt", ".pth", ".pt2", ".ckpt", ".bin", ".pkl", ".pickle", ".onnx", ".npz", ".h5", ".gguf", ".tflite", ".json"),
    ".safetensors",
}


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


def read_target(path: object, extension: str = ".safetensors") -> Path:
    """`read_path` for a file that is to be written, which may have no file extension of another format.

    Raises:
        CheckpointError: as `read_path`, or for such an extension.
    """
    target = read_path(path)
    assert isinstance(path, (str, os.PathLike))
    if target.suffix.lower() in _OF_OTHER_FORMATS - {extension}:
        raise CheckpointError(
            f"path={shown(os.fspath(path))} is named as a file of another format, but a {extension} file would be "
            f"written: give {target.with_suffix(extension).name!r}"
        )
    return target
