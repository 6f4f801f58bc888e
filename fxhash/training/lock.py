"""One run at a time in a folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from fxhash.errors import TrainingError
from fxhash.storage.atomic import remove_partial_files
from fxhash.training.folder import CHECKPOINT, CONFIGURATION, LOCK
from fxhash.training.processes import is_first_process

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


class FolderError(TrainingError):
    """The folder of a run can't be written to; what it holds is complete."""


@contextmanager
def claimed(folder: Path, console: Console) -> Iterator[None]:
    """Have the folder of a run to oneself; it is made if it is not there.

    Of processes that train together the first one writes, and has the lock. The system releases it when that process
    ends, however it ends.

    Args:
        folder: the folder.
        console: where to print a note if the file system has no locks.

    Raises:
        TrainingError: if another run has the folder.
        FolderError: if a file can't be written in the block; the message says how to go on.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_first_process():
            yield
            return
        lock = FileLock(folder / LOCK)
        try:
            _acquire(lock, folder, console)
            for each in (folder, (folder / CHECKPOINT).parent):
                remove_partial_files(each)
            yield
        finally:
            lock.release()
    except OSError as error:
        how = (
            "what was written before is complete: make room, then go on with --resume"
            if (folder / CONFIGURATION).exists()
            else "no run was begun: make room or give another --output, then start again"
        )
        raise FolderError(f"can't write to {str(folder)!r}: {error}; {how}") from error


def _acquire(lock: FileLock, folder: Path, console: Console) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(
            f"another process is training in {str(folder)!r}: wait until it ends, or stop it; a new run needs another "
            "--output"
        ) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        console.print(f"the file system of {str(folder)!r} has no locks: start no other run in this folder")
