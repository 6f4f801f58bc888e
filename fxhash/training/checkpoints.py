"""Checkpoints of a run: complete files with a digest, read without running code that may be in them."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from rich.console import Console

from fxhash.errors import CheckpointError
from fxhash.storage.atomic import replacing
from fxhash.training.folder import CHECKPOINT, PREVIOUS_CHECKPOINT
from fxhash.training.processes import is_first_process

# The last bytes of a file: this, and the SHA-256 of all bytes before it. What reads a zip archive, as torch does, finds
# its end by searching backwards and ignores them.
_MARK = b"fxhash-sha256:"
_TRAILER_BYTES = len(_MARK) + 2 * hashlib.sha256().digest_size

_RUN = "fxhash_run"
# What Lightning and `fit` read of a checkpoint.
_PARTS = {"state_dict": dict, "callbacks": dict, "loops": dict, "optimizer_states": list, "lr_schedulers": list}


class RunCheckpoints(CheckpointIO):
    """How Lightning writes and reads the checkpoints of a run, and how the last of them is found.

    Args:
        folder: of the run.
        run: `configuration_digest` of the run, which each checkpoint carries.
        earlier: what it was before the run was given more epochs.
    """

    def __init__(self, folder: Path, run: str, earlier: Collection[str] = ()) -> None:
        self.folder = folder
        self.run = run
        self.earlier = earlier

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint as `write_checkpoint` does."""
        write_checkpoint({**checkpoint, _RUN: self.run}, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint as `read_checkpoint` does, whatever is asked for."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)

    def find(self, console: Console) -> tuple[Path, dict[str, Any]] | None:
        """The last checkpoint that is not damaged, with its content; None if the run has none yet.

        The one before is read if the last one is damaged, or if the run was killed between renaming the two.

        Args:
            console: where to print that the last one is damaged.

        Raises:
            CheckpointError: if there are checkpoints but all are damaged, or they are of another run.
            OSError: if one can't be read.
        """
        last = self.folder / CHECKPOINT
        failure = None
        for path in (last, last.with_name(PREVIOUS_CHECKPOINT)):
            try:
                found = path, self._read_own(path)
            except FileNotFoundError:
                continue
            except CheckpointError as error:
                failure = failure or error
                continue
            if failure is not None and is_first_process():
                console.print(f"{failure}; going on from {path.name}, the one before", soft_wrap=True, highlight=False)
                # Else it would take the place of the one before when the next one is written.
                last.unlink(missing_ok=True)
            return found
        if failure is not None:
            raise CheckpointError(
                f"{failure}; to train from the start with --resume, delete the folder {str(last.parent)!r}"
            ) from failure
        return None

    def _read_own(self, path: Path) -> dict[str, Any]:
        checkpoint = read_checkpoint(path)
        # Older versions did not store the run.
        if checkpoint.get(_RUN, self.run) not in (self.run, *self.earlier):
            raise CheckpointError(f"{str(path)!r} is a checkpoint of another run")
        return checkpoint


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint beside the one before, which is then renamed to `previous.ckpt`.

    The new one is read back before that. At every moment one of the two names is a complete checkpoint.

    Raises:
        OSError: if it can't be written, or is not read back as it was written.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        # Released even by an error, whose traceback keeps the buffer: Python can't clear one that is still looked at.
        with buffer.getbuffer() as content, open(temporary, "wb") as file:
            file.write(content)
            file.write(_trailer(content))
            file.flush()
            os.fsync(file.fileno())
        if not _has_digest(temporary.read_bytes()):
            raise OSError(f"{path.name} is not read back as it was written")
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS_CHECKPOINT))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, after checking its digest.

    One without a digest is of an older version: its checksums are checked, which each zip archive has.

    Raises:
        CheckpointError: if it is damaged, or holds more than tensors and plain values, which might run code.
        OSError: if it can't be read.
    """
    content = path.read_bytes()
    if not _has_digest(content) and not _has_checksums(content):
        raise CheckpointError(f"{str(path)!r} is damaged: its content does not have the digest that was stored with it")
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # Whatever torch makes of a file that somebody else wrote.
    except Exception as error:
        raise CheckpointError(
            f"{str(path)!r} is no checkpoint of a run: it holds something else than tensors and plain values, which is "
            f"not loaded since it might run code ({type(error).__name__})"
        ) from error
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), _PARTS[key]) for key in _PARTS):
        raise CheckpointError(f"{str(path)!r} is no checkpoint of a run: it lacks some of {', '.join(_PARTS)}")
    return checkpoint


def _trailer(content: bytes | memoryview) -> bytes:
    return _MARK + hashlib.sha256(content).hexdigest().encode()


def _has_digest(content: bytes) -> bool:
    whole = memoryview(content)
    return bytes(whole[-_TRAILER_BYTES:]) == _trailer(whole[:-_TRAILER_BYTES])


def _has_checksums(content: bytes) -> bool:
    """Whether this is a checkpoint without a digest, and complete as far as the checksums in it tell."""
    if content[-_TRAILER_BYTES:].startswith(_MARK):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return bool(archive.namelist()) and archive.testzip() is None
    except Exception:
        return False
