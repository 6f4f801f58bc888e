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


def packed(plan: str | Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors as one of bytes, and a description of them, as `save` writes them of integers."""
    text = plan if isinstance(plan, str) else json.dumps(plan)
    small = together(text, {name: tensor.contiguous() for name, tensor in tensors.items()}, "")
    assert small is not None
    return small


def described(small: Mapping[str, Tensor]) -> dict[str, Any]:
    """The description, as a value that may be changed."""
    result: dict[str, Any] = json.loads(zlib.decompress(small[DESCRIPTION].numpy().tobytes()))
    return result


def with_description(small: Mapping[str, Tensor], description: Any) -> dict[str, Tensor]:
    """The same bytes with another description, as a value, as text, or as bytes that are not even compressed."""
    if not isinstance(description, bytes):
        text = description if isinstance(description, str) else json.dumps(description)
        description = zlib.compress(text.encode(errors="replace"))
    return {**small, DESCRIPTION: as_bytes(description)}


def forge_packed(path: Path, small: Mapping[str, Tensor]) -> None:
    """Write a file with such tensors, whose digest is right if they can be taken apart."""
    try:
        plan, tensors, factory = apart(small)
        stored = {"sha256": digest(plan, tensors, factory)}
    except Exception:  # Whatever the reader comes upon.
        stored = {"sha256": ""}
    save_file(dict(small), path, {"fxhash": json.dumps(stored)})


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


def in_earlier_form(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file in 8 bits as earlier versions wrote them: steps of float32, of `left` one for each column."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int8 and not name.endswith(".steps"):
            result[name] = tensor
        elif tensor.dtype == torch.int8:
            count, entries = tensor.shape
            result[name] = tensor
            result[f"{name}.steps"] = torch.full((1, entries) if "left" in name else (count, 1), 0.01)
    return result
