"""What a recovery leaves in its folder, so that one that was killed goes on."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxhash.errors import CheckpointError
from fxhash.smh.generator import SMHGenerator
from fxhash.storage.atomic import remove_partial_files, replacing

FILE = "recovery.pt"
_PARTS = {"of": str, "model": dict, "optimizer": dict, "spent": float, "steps": int, "position": tuple}


def digest(gm: nn.Module) -> str:
    """What tells a model from others: its parameters and buffers, and in how many bits they are computed with."""
    found = hashlib.sha256()
    for module in gm.modules():
        if isinstance(module, SMHGenerator) and module.plan.factor_bits is not None:
            found.update(str(module.plan.factor_bits).encode())
    for name, value in gm.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if isinstance(value, Tensor) and value.numel():
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state; whatever goes wrong, the one before is still there.

    Raises:
        CheckpointError: if it can't be written.
    """
    try:
        with replacing(folder / FILE) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{str(folder / FILE)!r} can't be written: {error}") from error


def prepare_folder(folder: Path) -> None:
    """Make a folder if need be, and remove what a process that was killed left half-written in it.

    Raises:
        CheckpointError: if there can be no such folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder, FILE)
    except OSError as error:
        raise CheckpointError(f"folder={str(folder)!r} can't be used: {error}") from error


def read_state(folder: Path, of: str) -> dict[str, Any] | None:
    """The state in a folder; None if there is none.

    Args:
        folder: of the recovery.
        of: the digest of the model that is to be recovered.

    Raises:
        CheckpointError: if it can't be read, is damaged, no such state, or one of another model.
    """
    path = folder / FILE
    try:
        if not path.exists():
            return None
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} can't be read: {error}") from error
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # Whatever torch makes of a file that somebody else wrote.
    except Exception as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged, or not of fxhash.recover ({type(error).__name__}): delete it to begin anew"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in _PARTS.items()):
        raise CheckpointError(f"{str(path)!r} is not of fxhash.recover: delete it, or give another folder")
    if state["of"] != of:
        raise CheckpointError(
            f"{str(folder)!r} holds the recovery of another model, or of other factors: give another folder"
        )
    return state
