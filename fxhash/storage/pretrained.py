"""A transformed model as a folder: its file, and a `config.json` for people and tools to read.

The file alone makes the model again. What `config.json` repeats of it is compared when the folder is read, so that the
two can't say different things.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxhash.capture.checking import ExampleInputs
from fxhash.capture.exported import Model
from fxhash.errors import CheckpointError, PlanError
from fxhash.printable import shortened
from fxhash.smh.bounded_json import read_json
from fxhash.storage.atomic import replacing
from fxhash.storage.checkpoint import file_of, load
from fxhash.storage.factory import Factory, stated_factory
from fxhash.storage.paths import PathLike, read_path
from fxhash.storage.reading import read_factory
from fxhash.version import __version__

CONFIG, MODEL = "config.json", "model.safetensors"
_FORMAT = 1
_MOST_CONFIG_BYTES = 2**20


def save_pretrained(
    gm: nn.Module,
    folder: PathLike,
    *,
    dtype: torch.dtype | str | None = None,
    dense_dtype: torch.dtype | str | None = None,
    fold_batch_norms: bool = False,
    allow_nan: bool = False,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write a transformed model to a folder: `model.safetensors`, as of `save`, and `config.json`.

    Args:
        gm: as of `save`.
        folder: where to write; it is made if need be, and files of the same names in it are replaced.
        dtype: as of `save`.
        dense_dtype: as of `save`.
        fold_batch_norms: as of `save`.
        allow_nan: as of `save`.
        factory: as of `save`; also in `config.json`.
        arguments: as of `save`; also in `config.json`.

    Raises:
        PlanError: as of `save`.
        TransformError: as of `save`.
        CheckpointError: as of `save`, or if the folder can't be made.
    """
    named = stated_factory(factory, arguments)
    content = file_of(gm, dtype, dense_dtype, fold_batch_norms, allow_nan, named)
    config = {"format": _FORMAT, "fxhash_version": __version__, **_described(named)}
    target = read_path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, data in ((MODEL, content), (CONFIG, f"{json.dumps(config, indent=2)}\n".encode())):
            with replacing(target / name) as temporary:
                temporary.write_bytes(data)
    except OSError as error:
        raise CheckpointError(f"{target} can't be written: {error}") from error


def from_pretrained(
    folder: PathLike,
    model: Model | None = None,
    *,
    allow_nan: bool = False,
    example_inputs: ExampleInputs | None = None,
    capture: str = "trace",
    trust: Collection[str] = (),
) -> nn.Module:
    """Rebuild a transformed model from a folder that `save_pretrained` wrote; it may come from anybody.

    Args:
        folder: the folder.
        model: as of `load`: if omitted, the factory that the folder names builds it, if `trust` has its module.
        allow_nan: as of `load`.
        example_inputs: as of `load`.
        capture: as of `load`.
        trust: as of `load`; nothing by default.

    Returns:
        As `load`.

    Raises:
        CheckpointError: as of `load`, or if `config.json` is not there, can't be read, or names another factory than
            the file.
        PlanError: as of `load`.
    """
    root = read_path(folder)
    found, stored = _read_config(root / CONFIG), _described(read_factory(root / MODEL))
    if {name: found.get(name) for name in stored} != stored:
        raise CheckpointError(
            f"{root / CONFIG} names another factory than {MODEL}: they are not of one model. Use fxhash.load on the "
            "file, or save the folder again"
        )
    return load(root / MODEL, model, allow_nan=allow_nan, example_inputs=example_inputs, capture=capture, trust=trust)


def _described(factory: Factory | None) -> dict[str, Any]:
    """What `config.json` says of a factory."""
    if factory is None:
        return {"factory": None, "arguments": None}
    return {"factory": factory.name, "arguments": dict(factory.arguments)}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_CONFIG_BYTES + 1)
        if len(content) > _MOST_CONFIG_BYTES:
            raise ValueError(f"it has more than {_MOST_CONFIG_BYTES:,} bytes")
        found = read_json(content.decode())
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError("it was not written by fxhash.save_pretrained, or by a later version")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} does not exist: give a folder that fxhash.save_pretrained wrote; for a file, use fxhash.load"
        ) from error
    except (OSError, ValueError, PlanError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {shortened(str(error))}") from error
    return found
