"""Files and folders that are complete or not there."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fxhash.errors import CheckpointError

_SUFFIX = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another name in the same folder to write to; at the end of the block, that file takes the place of `path`.

    Whatever goes wrong, `path` is as it was and nothing is left of the other file; only a process that is killed
    leaves it, see `remove_partial_files`. A file that is there hands its permissions on. Errors are those of the
    system.
    """
    temporary = _beside(path)
    try:
        yield temporary
        _flush_file(temporary)
        with suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is complete or not there.

    Raises:
        CheckpointError: if it can't be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"{path} can't be written: {error}") from error


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside `path` to fill; at the end of the block, it takes the place of `path` and all in it.

    Whatever goes wrong, `path` is as it was and nothing is left of the new folder. A process that is killed leaves
    hidden folders beside it, see `remove_partial_files`; in the moment between two renames, the old one is among them.
    Errors are those of the system.
    """
    temporary, previous = _beside(path), _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_file(file)
        existed = path.exists()
        if existed:
            os.rename(path, previous)
        try:
            os.rename(temporary, path)
        except OSError:
            if existed:
                os.rename(previous, path)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush_folder(path.parent)


def remove_partial_files(folder: Path, name: str = "*") -> None:
    """Remove what processes that were killed inside of the above left in a folder; none may be at it now.

    Args:
        folder: where it may be.
        name: of the file or folder that it was to become, as a pattern; anything if omitted.
    """
    for left in folder.glob(f".{name}.{'[0-9a-f]' * 32}{_SUFFIX}"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    # Not by tempfile, which would make a file that nobody but its owner can read.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_SUFFIX}")


def _flush_file(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Let the new name last through a loss of power, where the system can flush a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
