"""Files as an attacker writes them: any plan, any tensors, and the digest that is right for them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plan and tensors of a file, as values that may be changed."""
    with safe_open(path, framework="pt") as file:
        plan = json.loads(json.loads(file.metadata()["fxhash"])["plan"])
        return plan, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


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
