"""Files as an attacker writes them: any plan, any tensors, and the digest that is right for them."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxhash.storage.small_file import DESCRIPTION, apart, together


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plan and tensors of a file, as values that may be changed."""
    with safe_open(path, framework="pt") as file:
        stored = json.loads(file.metadata()["fxhash"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    plan = stored.get("plan", "")
    if not plan:
        plan, tensors, _ = apart(tensors)
    return json.loads(plan), {name: tensor.clone() for name, tensor in tensors.items()}


def described(path: Path) -> dict[str, Any]:
    """What a file of integers says of its plan and tensors, as a value that may be changed."""
    with safe_open(path, framework="pt") as file:
        return json.loads(zlib.decompress(file.get_tensor(DESCRIPTION).numpy().tobytes()))


def forge_small(path: Path, plan: Any, tensors: Mapping[str, Tensor], text: str | None = None) -> None:
    """Write all tensors as one, with a description of them, or with another text in its place."""
    whole = plan if isinstance(plan, str) else json.dumps(plan)
    packed = together(whole, {name: tensor.contiguous() for name, tensor in tensors.items()}, "")
    assert packed is not None
    if text is not None:
        packed[DESCRIPTION] = as_bytes(zlib.compress(text.encode()))
    forge_bytes(path, whole, tensors, packed)


def forge_bytes(path: Path, plan: str, tensors: Mapping[str, Tensor], packed: Mapping[str, Tensor]) -> None:
    """Write a file with a digest of some tensors that has others."""
    save_file(dict(packed), path, {"fxhash": json.dumps({"sha256": digest(plan, tensors)})})


def as_bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def forge(path: Path, plan: str | Mapping[str, Any], tensors: Mapping[str, Tensor], factory: Any = None) -> None:
    """Write a file with a plan, as a value or as text, tensors, and maybe a factory, as a value or as text."""
    text = plan if isinstance(plan, str) else json.dumps(plan)
    named = factory if isinstance(factory, str) else json.dumps(factory) if factory is not None else ""
    stored = {"sha256": digest(text, tensors, named), "plan": text} | ({"factory": named} if named else {})
    metadata = {"fxhash": json.dumps(stored)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def forge_header(path: Path, header: bytes, data: bytes = b"") -> None:
    """Write a file with a header of any bytes."""
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def digest(plan: str, tensors: Mapping[str, Tensor], factory: str = "") -> str:
    """What the format says: SHA-256 of the plan, a factory, and of each tensor's name, type, shape and bytes."""
    result = hashlib.sha256(plan.encode() + (json.dumps(["factory", factory]).encode() if factory else b""))
    for name in sorted(tensors):
        tensor = tensors[name]
        result.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        result.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return result.hexdigest()
