"""Runs: a folder each, with what was asked for, checkpoints, curves, and the trained model."""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor, distributed, fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import fxhash
from fxhash import zoo
from fxhash.errors import CheckpointError, TrainingError
from fxhash.files import replacing
from fxhash.generator import current_plan
from fxhash.latency import median_latencies
from fxhash.training.data import ImageData, load_data
from fxhash.training.module import Classifier, normalized
from fxhash.training.processes import is_first_process
from fxhash.training.recipe import Recipe
from fxhash.version import __version__

CONFIGURATION, CHECKPOINT, MODEL, RESULT, CURVES = (
    "run.json",
    "checkpoints/last.ckpt",
    "model.safetensors",
    "result.json",
    "metrics.csv",
)


_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True)
class RunOptions:
    """What to train, on what, and how.

    Attributes:
        model: a name of `fxhash.zoo`.
        data: a name of `fxhash.training.load_data`.
        recipe: how to train.
        compress: the fraction to compress to; None for the dense model.
        seed: for the start of the model, the order of the images, and whatever else is random.
        data_folder: where the files of torchvision's data sets are.
        image_size: height and width to which the images of a folder are scaled.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        tensorboard: whether to write the curves for TensorBoard too.
    """

    model: str
    data: str
    recipe: Recipe
    compress: float | None = None
    seed: int = 0
    data_folder: str = "data"
    image_size: int | None = None
    device: str = "auto"
    tensorboard: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The values by their names, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunOptions:
        """What `to_dict` gave."""
        return cls(**{**values, "recipe": Recipe(**values["recipe"])})


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


def train(options: RunOptions, folder: Path, download: bool = False, console: Console | None = None) -> RunResult:
    """Train a model from the start.

    Args:
        options: what to train.
        folder: a new folder for the run: `run.json`, `checkpoints/last.ckpt`, `metrics.csv`, and in the end
            `model.safetensors` and `result.json`.
        download: whether to fetch the data if it is not there.
        console: where to print; standard output where left out.

    Raises:
        TrainingError: if the folder holds a run already, the data can't be read, or the loss is not finite.
        UnknownModelError: if the zoo has no such model.
        BudgetError: if the model can't be made that small.
    """
    if (folder / CONFIGURATION).exists() and is_first_process():
        raise TrainingError(f"{str(folder)!r} holds a run already: add --resume to go on, or give another --output")
    data = load_data(options.data, Path(options.data_folder), download, options.image_size)
    mean, std = data.statistics()
    model = build_model(options, data)
    folder.mkdir(parents=True, exist_ok=True)
    if is_first_process():
        configuration = {
            "options": options.to_dict(),
            "classes": list(data.classes),
            "channels": data.channels,
            "size": list(data.train_images.shape[2:]),
            "mean": list(mean),
            "std": list(std),
            "images": {"train": len(data.train_labels), "test": len(data.test_labels)},
            "versions": {"fxhash": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }
        _write(folder / CONFIGURATION, json.dumps(configuration, indent=1) + "\n")
    return _fit(options, data, (mean, std), model, folder, None, console or Console())


def resume(folder: Path, console: Console | None = None) -> RunResult:
    """Go on with a run that was interrupted, to the same weights as if it had not been.

    Raises:
        TrainingError: if the folder holds no run, or one that is finished.
    """
    options, configuration = read_configuration(folder)
    if (folder / RESULT).exists():
        raise TrainingError(f"the run in {str(folder)!r} is finished: its result is in {RESULT}")
    data = load_data(options.data, Path(options.data_folder), False, options.image_size)
    checkpoint = folder / CHECKPOINT
    model = build_model(options, data)
    return _fit(
        options,
        data,
        (configuration["mean"], configuration["std"]),
        model,
        folder,
        checkpoint if checkpoint.exists() else None,
        console or Console(),
    )


def evaluate(folder: Path, data: ImageData | None = None) -> dict[str, float]:
    """Accuracy of the model of a finished run: as it was trained, and deployed from its file.

    Args:
        folder: the folder of the run.
        data: images to test on; those of the run where left out.

    Raises:
        TrainingError: if the run is not finished.
    """
    options, configuration = read_configuration(folder)
    model = load_model(folder)
    if data is None:
        data = load_data(options.data, Path(options.data_folder), False, options.image_size)
    models = {"trained": model}
    if isinstance(model, fx.GraphModule):
        models["deployed"] = fxhash.lower_for_deploy(model)
    mean, std = (torch.tensor(configuration[name]).view(-1, 1, 1) for name in ("mean", "std"))
    accuracies = {}
    for name, each in models.items():
        right = 0
        with torch.inference_mode():
            for images, labels in zip(data.test_images.split(500), data.test_labels.split(500), strict=True):
                right += int((each(normalized(images, mean, std)).argmax(1) == labels).sum())
        accuracies[name] = right / len(data.test_labels)
    return accuracies


def export(folder: Path, path: Path) -> None:
    """Write the model of a finished run to a file: `.safetensors`, or `.onnx` in its deployed form.

    The ONNX model takes normalised images, any number at a time.

    Raises:
        TrainingError: if the run is not finished, or for another kind of file.
        CheckpointError: if the file can't be written.
    """
    if path.suffix not in (".safetensors", ".onnx"):
        raise TrainingError(f"{str(path)!r} is neither a .safetensors nor an .onnx file: the ending decides")
    model = load_model(folder)
    if path.suffix == ".safetensors":
        try:
            _save_model(model, path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} can't be written: {error}") from error
        return
    _, configuration = read_configuration(folder)
    deployed = fxhash.lower_for_deploy(model) if isinstance(model, fx.GraphModule) else model
    images = torch.zeros(2, configuration["channels"], *configuration["size"])
    fxhash.export_onnx(deployed, (images,), path, dynamic_shapes=({0: torch.export.Dim("batch")},))


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


def load_model(folder: Path) -> nn.Module:
    """The trained model of a finished run, in eval mode on the CPU.

    Raises:
        TrainingError: if the run is not finished.
        CheckpointError: if the file of the model is damaged.
    """
    options, configuration = read_configuration(folder)
    if not (folder / MODEL).exists():
        raise TrainingError(f"the run in {str(folder)!r} is not finished: go on with --resume")
    dense = _dense_model(
        options.model, len(configuration["classes"]), configuration["channels"], configuration["size"]
    ).eval()
    if options.compress is None:
        try:
            dense.load_state_dict(safetensors.torch.load_file(folder / MODEL))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{folder / MODEL} can't be read: {error}") from error
        return dense
    return fxhash.load(folder / MODEL, dense)


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


def build_model(options: RunOptions, data: ImageData) -> nn.Module:
    """The model at its start, which the seed determines.

    Raises:
        TrainingError: if the model can't take images of this size.
    """
    channels, *size = data.train_images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        dense = _dense_model(options.model, len(data.classes), channels, size)
        try:
            with torch.no_grad():
                dense.eval()(torch.zeros(2, channels, *size))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise TrainingError(
                f"{options.model} can't take images of {size[1]} x {size[0]} pixels: choose another model, or give "
                f"--image-size for a folder of images ({error})"
            ) from error
        dense.train()
        return dense if options.compress is None else fxhash.transform(dense, options.compress, seed=options.seed)


def _dense_model(name: str, classes: int, channels: int, size: Sequence[int]) -> nn.Module:
    # Of all models, transformers alone are made for one size of image.
    sized = {"image_size": size[0]} if name in zoo.list("vit") else {}
    return zoo.create(name, num_classes=classes, in_channels=channels, **sized)


def _fit(
    options: RunOptions,
    data: ImageData,
    statistics: tuple[Sequence[float], Sequence[float]],
    model: nn.Module,
    folder: Path,
    checkpoint: Path | None,
    console: Console,
) -> RunResult:
    recipe = options.recipe
    classifier = Classifier(model, recipe, *statistics, data.mirrored, options.seed)
    counter = _CountingReduction()
    callbacks: list[Callback] = [_Curves(console, model, folder / CURVES), counter]
    if recipe.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema_decay))
    # Written under another name and then renamed, so that the last one is always whole.
    callbacks.append(
        ModelCheckpoint(folder / "checkpoints", "last", enable_version_counter=False, save_on_train_epoch_end=True)
    )
    if console.is_terminal:
        callbacks.append(RichProgressBar(leave=False))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    started = time.perf_counter()
    with _quiet_lightning():
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(options.device, options.device),
            devices=local if processes > 1 else 1,
            num_nodes=processes // local,
            strategy="ddp" if processes > 1 else "auto",
            max_epochs=recipe.epochs,
            precision=_PRECISIONS[recipe.precision],
            gradient_clip_val=recipe.clip_gradients or None,
            callbacks=callbacks,
            logger=TensorBoardLogger(folder, name="tensorboard", version="") if options.tensorboard else False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=console.is_terminal,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
        trainer.fit(
            classifier,
            _batches(data.train_images, data.train_labels, recipe.batch_size, options.seed, processes),
            _batches(data.test_images, data.test_labels, 500, None, processes),
            ckpt_path=checkpoint,
            weights_only=False if checkpoint is not None else None,
        )
    result = RunResult(
        trainable_before=_trainable_before(model),
        trainable_after=_trainable(model),
        test_accuracy=float(trainer.callback_metrics["test_accuracy"]),
        test_loss=float(trainer.callback_metrics["test_loss"]),
        epochs=recipe.epochs,
        seconds=round(time.perf_counter() - started, 1),
        gradient_bytes=counter.bytes_a_step,
        dense_gradient_bytes=4 * _trainable_before(model) if processes > 1 else 0,
    )
    if trainer.is_global_zero:
        _save_model(model, folder / MODEL)
        _write(folder / RESULT, json.dumps(asdict(result), indent=1) + "\n")
    return result


def _batches(images: Tensor, labels: Tensor, batch_size: int, seed: int | None, processes: int) -> DataLoader[Any]:
    """Batches in an order that the seed and the epoch determine; in the order of the data without a seed."""
    dataset = TensorDataset(images, labels)
    rank = int(os.environ.get("RANK", "0")) if processes > 1 else 0
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset, processes, rank, shuffle=seed is not None, seed=seed or 0
    )
    return DataLoader(dataset, max(batch_size // processes, 1), sampler=sampler)


def _save_model(model: nn.Module, path: Path) -> None:
    if isinstance(model, fx.GraphModule):
        fxhash.save(model, path)
    else:
        with replacing(path) as temporary:
            safetensors.torch.save_model(model, str(temporary))


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _trainable_before(model: nn.Module) -> int:
    return current_plan(model).trainable_before if isinstance(model, fx.GraphModule) else _trainable(model)


# Not annotated, since torch compares annotations with its own types, and here they are texts.
def _count_and_reduce(counter, bucket):  # type: ignore[no-untyped-def]
    counter.bytes += bucket.buffer().nbytes
    counter.steps += bucket.is_last()
    sent = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return sent.then(lambda future: future.value()[0] / distributed.get_world_size())


class _CountingReduction(Callback):
    """Does to gradients what data-parallel training does, and counts their bytes."""

    def __init__(self) -> None:
        self.bytes = 0
        self.steps = 0

    @property
    def bytes_a_step(self) -> int:
        return self.bytes // self.steps if self.steps else 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not by the strategy, which registers hooks on CUDA alone.
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(self, _count_and_reduce)


class _Curves(Callback):
    """A line an epoch below the size of the model, and the same in `metrics.csv`; a resumed run goes on with it."""

    def __init__(self, console: Console, model: nn.Module, path: Path) -> None:
        self.console = console
        self.path = path
        self.rows: list[dict[str, float]] = []
        after, before = _trainable(model), _trainable_before(model)
        share = f" of {before:,} ({after / before:.2%})" if after < before else ""
        self.size = f"{after:,} trainable parameters{share}"

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.console.print(self.size)
            self.console.print(f"{'epoch':>9}  {'train loss':>10}  {'test loss':>9}  {'accuracy':>8}  {'seconds':>7}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        row |= {name: float(trainer.callback_metrics[name]) for name in ("train_loss", "test_loss", "test_accuracy")}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(time.perf_counter() - self.started, 2)
        self.rows.append(row)
        if trainer.is_global_zero:
            with StringIO() as text:
                writer = csv.DictWriter(text, row, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)
                _write(self.path, text.getvalue())
            epoch = f"{row['epoch']}/{trainer.max_epochs}"
            self.console.print(
                f"{epoch:>9}  {row['train_loss']:>10.4f}  {row['test_loss']:>9.4f}  {row['test_accuracy']:>8.2%}  "
                f"{row['seconds']:>7.1f}",
                highlight=False,
            )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without its notes on devices, workers and where it saves, which say nothing about this run."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=r".*(does not have many workers|Checkpoint directory).*")
            # Of factors with a single row or column, for which any stride is right.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
