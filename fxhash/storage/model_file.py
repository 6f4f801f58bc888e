"""The file of a model: a header, a plan as text and tensors, with a digest of both that shows damage.

The format is safetensors, and the plan lies in its metadata; no pickle. Of a small model, most of such a file would be
names: `small_file` has a form of it with all tensors in one. The digest is no signature: whoever changes the
content can change the digest with it. So nothing that a file says is believed, and its header is counted before
anything reads it: a few megabytes of JSON could otherwise take gigabytes, or end the process.
"""

from __future__ import annotations

import hashlib
import json
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from fxhash.errors import CheckpointError
from fxhash.printable import shortened
from fxhash.smh.bounded_json import read_json
from fxhash.storage.small_file import DESCRIPTION, VALUES, apart, together

_KEY = "fxhash"
# Enough for a plan of as many parameters as it may have, and the entries of all tensors.
_MOST_HEADER_BYTES = 2**24
_MOST_HEADER_VALUES = 2**20
# One a tensor, and one a parameter of the plan. The library takes about 700 bytes and 30 microseconds for a tensor.
_MOST_HEADER_OBJECTS = 40_000


@dataclass(frozen=True)
class StoredModel:
    """What a file holds, as far as the digest vouches for it.

    Attributes:
        plan: the plan, as JSON.
        tensors: by name. They are views of the file, whose content they have while nobody writes to it: copy them.
        factory: what builds the model, as JSON; empty if the file doesn't say.
    """

    plan: str
    tensors: dict[str, Tensor]
    factory: str = ""


def pack(plan: str, tensors: Mapping[str, Tensor], factory: str = "", is_small: bool = False) -> bytes:
    """The bytes of a file that `unpack` takes.

    Args:
        plan: as JSON.
        tensors: by name; contiguous and on the CPU.
        factory: as JSON; empty for none.
        is_small: whether to put all tensors into one, which saves most of the header, where their names and the plan
            are not too many for that.

    Raises:
        CheckpointError: if there are too many tensors for a file.
    """
    # One key, since safetensors writes several in an order that changes from process to process.
    stored = {"sha256": _digest(plan, tensors, factory)}
    small = together(plan, tensors, factory) if is_small else None
    if small is not None:
        tensors = small
    else:
        stored |= {"plan": plan, **({"factory": factory} if factory else {})}
    metadata = {_KEY: json.dumps(stored)}
    content = to_safetensors(dict(tensors), metadata)
    (size,) = struct.unpack_from("<Q", content)
    excess = _excess(size, content[8 : 8 + min(size, _MOST_HEADER_BYTES)])
    if excess:
        raise CheckpointError(f"this model has too many parameters for a file: {excess}")
    return content


def unpack(path: Path) -> StoredModel:
    """Open a file and compare its digest.

    Raises:
        CheckpointError: if it can't be read, is damaged, or is no file that `pack` would write.
    """
    _check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # Whatever the two libraries come upon in bytes that somebody made up.
    except Exception as error:
        raise CheckpointError(
            f"{path} can't be read: it is truncated or no safetensors file ({shortened(str(error))})"
        ) from error
    if _KEY not in metadata:
        raise CheckpointError(f"{path} was not written by fxhash.save: it has no plan in its metadata")
    try:
        stored = read_json(metadata[_KEY])
        digest = stored["sha256"]
        if tensors.keys() == {DESCRIPTION, VALUES} and "plan" not in stored:
            plan, tensors, factory = apart(tensors)
        else:
            plan, factory = stored["plan"], stored.get("factory", "")
        if not isinstance(plan, str):
            raise TypeError("the plan is no text")
        if not isinstance(factory, str):
            raise TypeError("the factory is no text")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its metadata can't be read ({shortened(str(error))})") from error
    if not (plan.isascii() and factory.isascii()) or _digest(plan, tensors, factory) != digest:
        raise CheckpointError(f"{path} is damaged: its content does not have the digest that was stored with it")
    return StoredModel(plan, tensors, factory)


def _check_header(path: Path) -> None:
    """Raise CheckpointError if a path is no file, or the header is larger than any that `pack` writes."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} can't be read: it is no file")
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            header = file.read(min(size, _MOST_HEADER_BYTES))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} can't be read: {error}") from error
    # One that ends before its header does is truncated.
    excess = _excess(size, header) if len(header) == min(size, _MOST_HEADER_BYTES) else ""
    if excess:
        raise CheckpointError(f"{path} can't be read: {excess}")


def _excess(size: int, header: bytes) -> str:
    """What a header has too much of; an empty string if nothing."""
    if size > _MOST_HEADER_BYTES:
        return f"its header would take {size:,} bytes, more than {_MOST_HEADER_BYTES:,}"
    values = sum(map(header.count, (b",", b"[", b"{")))
    if values > _MOST_HEADER_VALUES:
        return f"its header would hold {values:,} values, more than {_MOST_HEADER_VALUES:,}"
    objects = header.count(b"{")
    if objects > _MOST_HEADER_OBJECTS:
        return f"its header would hold {objects:,} tensors and parameters, more than {_MOST_HEADER_OBJECTS:,}"
    return ""


def _digest(plan: str, tensors: Mapping[str, Tensor], factory: str) -> str:
    """SHA-256 of the plan, of the factory if there is one, and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(plan.encode())
    if factory:
        digest.update(json.dumps(["factory", factory]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
