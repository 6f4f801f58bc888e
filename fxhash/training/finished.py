"""What can be done with a finished run: use its model, test it, time it, and write it to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

import fxhash
from fxhash.errors import CheckpointError, TrainingError
from fxhash.storage.onnx_bits import read_onnx_dtype
from fxhash.storage.quantization import read_dense_dtype, read_storage_dtype
from fxhash.training.data import ImageData, load_data
from fxhash.training.folder import load_model, read_configuration, save_model
from fxhash.training.latency import median_latencies
from fxhash.training.preprocessing import ReadsBytes


@dataclass(frozen=True)
class FinishedRun:
    """What a finished run made, to be used in a program.

    Attributes:
        model: maps images of bytes to logits, in eval mode on the CPU; the deployed form of a compressed model.
        classes: names of the classes, in the order of the logits.
        channels: of an image.
        size: height and width of an image.
    """

    model: nn.Module
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]

    def logits(self, images: Tensor) -> Tensor:
        """What the model says of images.

        Args:
            images: uint8, of shape `(batch, channels, height, width)`, as they were before training: 0 to 255.

        Returns:
            Shape `(batch, classes)`.

        Raises:
            TrainingError: for another type or shape, which a model may take without a word.

        Example:
            >>> run = load_run(Path("runs/digits"))  # doctest: +SKIP
            >>> [run.classes[best] for best in run.logits(images).argmax(1)]  # doctest: +SKIP
            ['3']
        """
        shape = (self.channels, *self.size)
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != shape:
            raise TrainingError(
                f"images must be a uint8 tensor of shape (batch, {', '.join(map(str, shape))}), not {images.dtype} of "
                f"shape {tuple(images.shape)}"
            )
        with torch.inference_mode():
            return self.model(images)


def load_run(folder: Path, file: Path | None = None) -> FinishedRun:
    """The model of a finished run, deployed, with the normalization of its images.

    Args:
        folder: the folder of the run, of which `run.json` and `model.safetensors` are read.
        file: another file with the model, as exported.

    Raises:
        TrainingError: if the run is not finished.
        CheckpointError: if the file can't be read.
        TargetError: if its model is of a factory that is not trusted, or can't be built.
    """
    _, configuration = read_configuration(folder)
    model = load_model(folder, file)
    if isinstance(model, fx.GraphModule):
        model = fxhash.lower_for_deploy(model)
    reader = ReadsBytes(model, configuration["mean"], configuration["std"]).eval()
    height, width = configuration["size"]
    return FinishedRun(reader, tuple(configuration["classes"]), configuration["channels"], (height, width))


def evaluate(folder: Path, data: ImageData | None = None, file: Path | None = None) -> dict[str, float]:
    """Accuracy of the model of a finished run: as it was trained, and deployed from its file.

    Args:
        folder: the folder of the run.
        data: images to test on; those of the run if omitted.
        file: a file with its model, as exported; that of the run if omitted.

    Raises:
        TrainingError: if the run is not finished.
        CheckpointError: if the file can't be read.
    """
    options, configuration = read_configuration(folder)
    model = load_model(folder, file)
    if data is None:
        data = load_data(options.data, Path(options.data_folder), False, options.image_size)
    models = {"trained": model}
    if isinstance(model, fx.GraphModule):
        models["deployed"] = fxhash.lower_for_deploy(model)
    accuracies = {}
    for name, each in models.items():
        reader = ReadsBytes(each, configuration["mean"], configuration["std"])
        right = 0
        with torch.inference_mode():
            for images, labels in zip(data.test_images.split(500), data.test_labels.split(500), strict=True):
                right += int((reader(images).argmax(1) == labels).sum())
        accuracies[name] = right / len(data.test_labels)
    return accuracies


def export(
    folder: Path,
    path: Path,
    dtype: torch.dtype | str | None = None,
    dense_dtype: torch.dtype | str | None = None,
    fold_batch_norms: bool = False,
) -> None:
    """Write the model of a finished run to a file: `.safetensors`, or `.onnx` in its deployed form.

    The ONNX model takes normalized images, any number at a time: bytes over 255, less `mean`, over `std`, as of the
    run's `run.json`.

    Args:
        folder: the folder of the run.
        path: the file.
        dtype: type to store the factors in, as of `fxhash.save` or `fxhash.export_onnx`.
        dense_dtype: type to store all else in, as of `fxhash.save`.
        fold_batch_norms: as of `fxhash.save`.

    Raises:
        TrainingError: if the run is not finished, for another kind of file, for any of these of a dense model, or
            `dense_dtype` or `fold_batch_norms` of an ONNX file.
        PlanError: for a type that can't be stored.
        CheckpointError: if the file can't be written.
    """
    if path.suffix not in (".safetensors", ".onnx"):
        raise TrainingError(f"{str(path)!r} is neither a .safetensors nor an .onnx file: the file extension decides")
    model = load_model(folder)
    given = {
        "dtype": dtype is not None,
        "dense_dtype": dense_dtype is not None,
        "fold_batch_norms": fold_batch_norms,
    }
    asked = [name for name, is_given in given.items() if is_given]
    if path.suffix == ".onnx" and asked and asked != ["dtype"]:
        raise TrainingError(f"{asked[-1]}=... is for a .safetensors file: omit it")
    if dtype is not None:
        dtype = read_storage_dtype(dtype) if path.suffix == ".safetensors" else read_onnx_dtype(dtype)
    if dense_dtype is not None:
        dense_dtype = read_dense_dtype(dense_dtype)
    if asked and not isinstance(model, fx.GraphModule):
        raise TrainingError(
            f"the run in {str(folder)!r} is of the dense model, which has no factors: omit "
            + " and ".join(f"{name}=..." for name in asked)
        )
    if path.suffix == ".safetensors":
        try:
            save_model(model, path, dtype, dense_dtype, fold_batch_norms)
        except OSError as error:
            raise CheckpointError(f"{path} can't be written: {error}") from error
        return
    _, configuration = read_configuration(folder)
    if dtype is None and isinstance(model, fx.GraphModule):
        model = fxhash.lower_for_deploy(model, device=fxhash.DeviceProfile.onnx_runtime())
    images = torch.zeros(2, configuration["channels"], *configuration["size"])
    # What is to be rounded is lowered after that.
    fxhash.export_onnx(model, (images,), path, dynamic_shapes=({0: torch.export.Dim("batch")},), dtype=dtype)


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of a call of a run's model for one batch, deployed and dense."""

    batch: int
    deployed: float
    dense: float


def measure_latency(folder: Path, batches: Sequence[int] = (1, 8, 100), calls: int = 50) -> list[Latency]:
    """Time the deployed model of a finished run beside the dense one, on this machine's CPU.

    Args:
        folder: the folder of the run.
        batches: numbers of images to time.
        calls: how often to call each model; medians are reported.

    Raises:
        TrainingError: if the run is not finished.
    """
    _, configuration = read_configuration(folder)
    model = load_model(folder)
    dense, deployed = model, model
    if isinstance(model, fx.GraphModule):
        dense, deployed = fxhash.materialize(model), fxhash.lower_for_deploy(model)
    measured = []
    for batch in batches:
        images = torch.randn(batch, configuration["channels"], *configuration["size"])
        seconds = median_latencies([deployed, dense], images, calls)
        measured.append(Latency(batch, *(1e3 * each for each in seconds)))
    return measured
