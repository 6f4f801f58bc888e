"""Files that are complete or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SUFFIX = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another name in the same folder to write to; at the end of the block, that file takes the place of `path`.

    Whatever goes wrong, `path` is as it was and nothing is left of the other file; only a process that is killed
    leaves it, see `remove_partial_files`. Errors are those of the system.
    """
    # Not by tempfile, which would make a file that nobody but its owner can read.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_SUFFIX}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def remove_partial_files(folder: Path) -> None:
    """Remove what processes that were killed inside of `replacing` left in a folder; none may be at it now."""
    for left in folder.glob(f".*{_SUFFIX}"):
        left.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Let the new name last through a loss of power, where the system can flush a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
