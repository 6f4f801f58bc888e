"""The folder of a run: names of its files, and how the configuration and models are read and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import fx, nn

import fxhash
from fxhash import zoo
from fxhash.errors import CheckpointError, TrainingError
from fxhash.storage.atomic import replacing
from fxhash.targets import Target, build_model, require_trust
from fxhash.training.data import ImageData
from fxhash.training.options import RunOptions
from fxhash.training.preprocessing import ReadsBytes

CONFIGURATION, CHECKPOINT, MODEL, RESULT, CURVES, LOCK = (
    "run.json",
    "checkpoints/last.ckpt",
    "model.safetensors",
    "result.json",
    "metrics.csv",
    "run.lock",
)
PREVIOUS_CHECKPOINT = "previous.ckpt"

# Options that may be others when a run goes on: where things are, and what is shown. A wrong one is noticed.
MAY_CHANGE = ("data", "data_folder", "start", "teacher", "device", "tensorboard")


def load_model(folder: Path, file: Path | None = None) -> nn.Module:
    """The trained model of a finished run, in eval mode on the CPU.

    Args:
        folder: the folder of the run.
        file: another file with the model, as exported; that of the run if omitted.

    Raises:
        TrainingError: if the run is not finished.
        CheckpointError: if the file of the model is damaged.
        TargetError: if its model is of a factory that is not trusted, or can't be built.
    """
    options, configuration = read_configuration(folder)
    require_trust(network_target(options), folder / CONFIGURATION)
    if file is None and not (folder / MODEL).exists():
        raise TrainingError(f"the run in {str(folder)!r} is not finished: go on with --resume")
    size = (len(configuration["classes"]), configuration["channels"], configuration["size"])
    # Its weights are drawn only to be replaced.
    with torch.random.fork_rng(devices=[]):
        dense = build_dense(options, *size).eval()
    path = file or folder / MODEL
    if options.compress is not None:
        return fxhash.load(path, dense)
    try:
        # Tied weights are stored once.
        safetensors.torch.load_model(dense, str(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    return dense


def write_configuration(folder: Path, configuration: dict[str, Any]) -> None:
    """Write the configuration file of a run, with a digest of what decides the weights."""
    configuration = {**configuration, "sha256": configuration_digest(configuration)}
    write_text(folder / CONFIGURATION, json.dumps(configuration, indent=1) + "\n")


def configuration_digest(configuration: Mapping[str, Any]) -> str:
    """SHA-256 of the values that would change a run, or what its model computes, without anybody noticing."""
    options = {name: value for name, value in configuration["options"].items() if name not in MAY_CHANGE}
    values = [options, *(configuration[name] for name in ("classes", "channels", "size", "mean", "std"))]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_configuration(folder: Path) -> tuple[RunOptions, dict[str, Any]]:
    """What was asked for in a run, and the whole of its configuration file.

    Raises:
        TrainingError: if there is none, or it is damaged.
    """
    try:
        configuration = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
        missing = {"options", "classes", "channels", "size", "mean", "std"} - configuration.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        # Older versions stored no digest.
        if configuration.get("sha256", digest := configuration_digest(configuration)) != digest:
            raise ValueError(
                "its values don't have the digest that was stored with them: restore it, or start a new run"
            )
        return RunOptions.from_dict(configuration["options"]), configuration
    except FileNotFoundError as error:
        raise TrainingError(f"there is no run in {str(folder)!r}: it has no {CONFIGURATION}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError(f"{str(folder / CONFIGURATION)!r} can't be read: {error}") from error


def trained_epochs(folder: Path) -> int | None:
    """How many epochs the finished model of a run was trained for; None if it never was finished.

    Raises:
        TrainingError: if the file of the result is damaged.
    """
    try:
        return int(json.loads((folder / RESULT).read_text(encoding="utf-8"))["epochs"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{str(folder / RESULT)!r} can't be read: {type(error).__name__}: {error}") from error


def load_teacher(folder: Path, data: ImageData) -> nn.Module:
    """The model of a finished run, for images of bytes of some data.

    Raises:
        TrainingError: if the run is not finished, or was on images of other classes or another size.
    """
    _, configuration = read_configuration(folder)
    seen = (configuration["classes"], configuration["channels"], configuration["size"])
    shown = (list(data.classes), data.channels, list(data.train_images.shape[2:]))
    if seen != shown:
        raise TrainingError(
            f"the run in {str(folder)!r} can't teach: it was trained on {_describe(*seen)}, but these are "
            f"{_describe(*shown)}"
        )
    return ReadsBytes(load_model(folder), configuration["mean"], configuration["std"])


def _describe(classes: Sequence[str], channels: int, size: Sequence[int]) -> str:
    names = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"images of {size[1]} x {size[0]} pixels and {channels} channels of {len(classes)} classes ({names})"


def build_dense(options: RunOptions, classes: int, channels: int, size: Sequence[int]) -> nn.Module:
    """The dense model of a run, with random weights.

    Args:
        options: name the model.
        classes: number of logits.
        channels: of an image.
        size: its height and width.

    Raises:
        UnknownModelError: if the zoo has no such model.
        TargetError: if there is no such model elsewhere, or it can't be built.
        TrainingError: if the model has no such options, or none for images of this size; or if it is a graph.
    """
    target = network_target(options)
    shape = {"num_classes": classes, "in_channels": channels, "image_size": size[0]}
    if target.source != "zoo":
        dense = build_model(target, options=shape)
        if isinstance(dense, fx.GraphModule):
            raise TrainingError(f"{options.model} is a graph: give what makes the module that it was traced from")
        return dense
    # Of all models, transformers alone are made for one size of image.
    if target.name not in zoo.list("vit"):
        del shape["image_size"]
    try:
        return zoo.create(target.name, **{**shape, **options.model_options})
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"can't build {options.network} for images of {size[1]} x {size[0]} pixels: {error}"
        ) from error


def network_target(options: RunOptions) -> Target:
    """What names the model of a run: a name without a colon is one of the zoo.

    Raises:
        TargetError: if it is no target.
    """
    return Target.parse(options.model) if ":" in options.model else Target("zoo", options.model)


def save_model(
    model: nn.Module,
    path: Path,
    dtype: torch.dtype | None = None,
    dense_dtype: torch.dtype | None = None,
    fold_batch_norms: bool = False,
) -> None:
    """Write a model, dense or transformed, to a `.safetensors` file, which is complete or not there.

    Args:
        model: the model.
        path: the file.
        dtype: type to store factors in, as of `fxhash.save`; a dense model has none.
        dense_dtype: type to store all else in, as of `fxhash.save`; not for a dense model.
        fold_batch_norms: as of `fxhash.save`; not for a dense model.

    Raises:
        CheckpointError: if a type can't hold the values.
        OSError: if the file can't be written.
    """
    try:
        if isinstance(model, fx.GraphModule):
            fxhash.save(model, path, dtype=dtype, dense_dtype=dense_dtype, fold_batch_norms=fold_batch_norms)
        else:
            with replacing(path) as temporary:
                safetensors.torch.save_model(model, str(temporary))
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise
    except SafetensorError as error:
        raise OSError(str(error)) from error


def write_text(path: Path, text: str) -> None:
    """Write a file that is complete or not there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
