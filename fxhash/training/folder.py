"""The folder of a run: what was asked for, checkpoints, curves, and in the end the trained model and its result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from fxhash.training.data import ImageData
from fxhash.training.preprocessing import ReadsBytes
from fxhash.training.recipe import Recipe

CONFIGURATION, CHECKPOINT, MODEL, RESULT, CURVES = (
    "run.json",
    "checkpoints/last.ckpt",
    "model.safetensors",
    "result.json",
    "metrics.csv",
)


@dataclass(frozen=True)
class RunOptions:
    """What to train, on what, and how.

    Attributes:
        model: a name of `fxhash.zoo`.
        data: a name of `fxhash.training.load_data`.
        recipe: how to train.
        compress: the fraction to compress to; None for the dense model.
        start: folder of a finished run of the dense model whose weights to start from, as near as factors come to them.
        teacher: folder of a finished run whose model's logits are to be learnt too.
        seed: for the initialization of the model, the order of the images, and whatever else is random.
        data_folder: where the files of torchvision's data sets are.
        image_size: height and width to which the images of a folder are scaled.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        tensorboard: whether to write the curves for TensorBoard too.
        model_options: of `fxhash.zoo.create`, beside the numbers of classes and channels; such as `{"width": 32}`.
        test_each_epoch: whether to test after each epoch, which is what curves need, instead of after the last alone.
    """

    model: str
    data: str
    recipe: Recipe
    compress: float | None = None
    start: str | None = None
    teacher: str | None = None
    seed: int = 0
    data_folder: str = "data"
    image_size: int | None = None
    device: str = "auto"
    tensorboard: bool = False
    model_options: Mapping[str, int] = field(default_factory=dict)
    test_each_epoch: bool = True

    @property
    def network(self) -> str:
        """The model with its options, in words.

        Example:
            >>> RunOptions("resnet8", "digits", Recipe(), model_options={"width": 32}).network
            'resnet8, width 32'
        """
        return ", ".join([self.model, *(f"{name} {value}" for name, value in self.model_options.items())])

    def to_dict(self) -> dict[str, Any]:
        """The values by their names, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunOptions:
        """What `to_dict` gave; older files lack the last of them."""
        model_options = dict(values.get("model_options", {}))
        return cls(**{**values, "recipe": Recipe(**values["recipe"]), "model_options": model_options})


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        trainable_before: trainable parameters of the dense model.
        trainable_after: those that were trained, everything counted.
        test_accuracy: fraction of the test images that the trained model gets right.
        test_loss: cross entropy on the test images.
        epochs: passes over the training images.
        seconds: time of the last part of the run, if it was interrupted.
        gradient_bytes: bytes of gradients that each process sends in a step; 0 for one process.
        dense_gradient_bytes: what the dense model would send.
    """

    trainable_before: int
    trainable_after: int
    test_accuracy: float
    test_loss: float
    epochs: int
    seconds: float
    gradient_bytes: int
    dense_gradient_bytes: int


def load_model(folder: Path, file: Path | None = None) -> nn.Module:
    """The trained model of a finished run, in eval mode on the CPU.

    Args:
        folder: the folder of the run.
        file: another file with the model, as exported; that of the run if omitted.

    Raises:
        TrainingError: if the run is not finished.
        CheckpointError: if the file of the model is damaged.
    """
    options, configuration = read_configuration(folder)
    if not (folder / MODEL).exists():
        raise TrainingError(f"the run in {str(folder)!r} is not finished: go on with --resume")
    size = (len(configuration["classes"]), configuration["channels"], configuration["size"])
    # Its weights are drawn only to be replaced.
    with torch.random.fork_rng(devices=[]):
        dense = build_dense(options, *size).eval()
    path = file or folder / MODEL
    if options.compress is not None:
        return fxhash.load(path, dense)
    try:
        dense.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    return dense


def read_configuration(folder: Path) -> tuple[RunOptions, dict[str, Any]]:
    """What was asked for in a run, and the whole of its configuration file.

    Raises:
        TrainingError: if there is none.
    """
    try:
        configuration = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
        missing = {"options", "classes", "channels", "size", "mean", "std"} - configuration.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        return RunOptions.from_dict(configuration["options"]), configuration
    except FileNotFoundError as error:
        raise TrainingError(f"there is no run in {str(folder)!r}: it has no {CONFIGURATION}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{str(folder / CONFIGURATION)!r} can't be read: {error}") from error


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
    """The dense model of a run, with the zoo's random weights.

    Args:
        options: name the model.
        classes: number of logits.
        channels: of an image.
        size: its height and width.

    Raises:
        UnknownModelError: if the zoo has no such model.
        TrainingError: if the model has no such options, or none for images of this size.
    """
    # Of all models, transformers alone are made for one size of image.
    sized = {"image_size": size[0]} if options.model in zoo.list("vit") else {}
    try:
        return zoo.create(
            options.model, **{"num_classes": classes, "in_channels": channels, **sized, **options.model_options}
        )
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"can't build {options.network} for images of {size[1]} x {size[0]} pixels: {error}"
        ) from error


def save_model(model: nn.Module, path: Path, dtype: torch.dtype | None = None) -> None:
    """Write a model, dense or transformed, to a `.safetensors` file, which is complete or not there.

    Args:
        model: the model.
        path: the file.
        dtype: type to store factors in, as of `fxhash.save`; a dense model has none.
    """
    if isinstance(model, fx.GraphModule):
        fxhash.save(model, path, dtype=dtype)
    else:
        with replacing(path) as temporary:
            safetensors.torch.save_model(model, str(temporary))


def write_text(path: Path, text: str) -> None:
    """Write a file that is complete or not there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
