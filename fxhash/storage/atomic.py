"""Files that are complete or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another name in the same folder to write to; at the end of the block, that file takes the place of `path`.

    Whatever goes wrong, `path` is as it was and nothing is left of the other file. Errors are those of the system.
    """
    # Not by tempfile, which would make a file that nobody but its owner can read.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
