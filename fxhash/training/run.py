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
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor, distributed, fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import fxhash
from fxhash.errors import TrainingError
from fxhash.training.data import ImageData, load_data
from fxhash.training.folder import (
    CHECKPOINT,
    CONFIGURATION,
    CURVES,
    MODEL,
    RESULT,
    RunOptions,
    RunResult,
    build_dense,
    load_model,
    load_teacher,
    read_configuration,
    save_model,
    write_text,
)
from fxhash.training.module import Classifier, ReadsBytes
from fxhash.training.processes import is_first_process
from fxhash.training.tensorboard import require_tensorboard
from fxhash.transformed import current_plan
from fxhash.version import __version__

_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def train(options: RunOptions, folder: Path, download: bool = False, console: Console | None = None) -> RunResult:
    """Train a model from the start.

    Args:
        options: what to train.
        folder: a new folder for the run: `run.json`, `checkpoints/last.ckpt`, `metrics.csv`, and in the end
            `model.safetensors` and `result.json`.
        download: whether to fetch the data if it is not there.
        console: where to print; standard output where left out.

    Raises:
        TrainingError: if the folder holds a run already, the data can't be read, the loss is not finite, or the package
            for TensorBoard is missing where its curves are asked for.
        UnknownModelError: if the zoo has no such model.
        BudgetError: if the model can't be made that small.
        CheckpointError: if the file of a model to start from, or of a teacher, is damaged.
    """
    if (folder / CONFIGURATION).exists() and is_first_process():
        raise TrainingError(f"{str(folder)!r} holds a run already: add --resume to go on, or give another --output")
    if options.tensorboard:
        require_tensorboard()
    data = load_data(options.data, Path(options.data_folder), download, options.image_size)
    mean, std = data.statistics()
    classifier = _build_classifier(options, data, mean, std)
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
        write_text(folder / CONFIGURATION, json.dumps(configuration, indent=1) + "\n")
    return _fit(classifier, options, data, folder, None, console or Console())


def resume(folder: Path, console: Console | None = None) -> RunResult:
    """Go on with a run that was interrupted, to the same weights as if it had not been.

    Raises:
        TrainingError: if the folder holds no run, or one that is finished; for TensorBoard as in `train`.
    """
    options, configuration = read_configuration(folder)
    if (folder / RESULT).exists():
        raise TrainingError(f"the run in {str(folder)!r} is finished: its result is in {RESULT}")
    if options.tensorboard:
        require_tensorboard()
    data = load_data(options.data, Path(options.data_folder), False, options.image_size)
    checkpoint = (folder / CHECKPOINT) if (folder / CHECKPOINT).exists() else None
    classifier = _build_classifier(options, data, configuration["mean"], configuration["std"])
    return _fit(classifier, options, data, folder, checkpoint, console or Console())


def build_model(options: RunOptions, data: ImageData) -> nn.Module:
    """The model at its start, which the seed determines.

    Raises:
        TrainingError: if the model can't take images of this size, or the run to start from has another model.
        CheckpointError: if the file of that run is damaged.
    """
    channels, *size = data.train_images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        dense = build_dense(options.model, len(data.classes), channels, size)
        try:
            with torch.no_grad():
                dense.eval()(torch.zeros(2, channels, *size))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise TrainingError(
                f"{options.model} can't take images of {size[1]} x {size[0]} pixels: choose another model, or give "
                f"--image-size for a folder of images ({error})"
            ) from error
        dense.train()
        if options.start is not None:
            _start_from_(dense, options, Path(options.start))
        if options.compress is None:
            return dense
        init = "random" if options.start is None else "pretrained"
        return fxhash.transform(dense, options.compress, init=init, seed=options.seed)


def _start_from_(dense: nn.Module, options: RunOptions, folder: Path) -> None:
    """Set the weights of a model to those of a finished run."""
    started, _ = read_configuration(folder)
    if (started.model, started.compress) != (options.model, None):
        kind = "dense" if started.compress is None else "compressed"
        raise TrainingError(
            f"can't start from {str(folder)!r}, a run of a {kind} {started.model}: give one of a dense {options.model}"
        )
    try:
        dense.load_state_dict(load_model(folder).state_dict())
    except RuntimeError as error:
        raise TrainingError(f"the model of {str(folder)!r} does not fit these images: {error}") from error


def _build_classifier(options: RunOptions, data: ImageData, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    teacher = None if options.teacher is None else load_teacher(Path(options.teacher), data)
    model = ReadsBytes(build_model(options, data), mean, std)
    return Classifier(model, options.recipe, data.mirrored, options.seed, teacher)


def _fit(
    classifier: Classifier,
    options: RunOptions,
    data: ImageData,
    folder: Path,
    checkpoint: Path | None,
    console: Console,
) -> RunResult:
    recipe, model = options.recipe, classifier.model.model
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
    with quiet_lightning():
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
        save_model(model, folder / MODEL)
        write_text(folder / RESULT, json.dumps(asdict(result), indent=1) + "\n")
    return result


def _batches(images: Tensor, labels: Tensor, batch_size: int, seed: int | None, processes: int) -> DataLoader[Any]:
    """Batches in an order that the seed and the epoch determine; in the order of the data without a seed."""
    dataset = TensorDataset(images, labels)
    rank = int(os.environ.get("RANK", "0")) if processes > 1 else 0
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset, processes, rank, shuffle=seed is not None, seed=seed or 0
    )
    return DataLoader(dataset, max(batch_size // processes, 1), sampler=sampler)


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
                write_text(self.path, text.getvalue())
            epoch = f"{row['epoch']}/{trainer.max_epochs}"
            self.console.print(
                f"{epoch:>9}  {row['train_loss']:>10.4f}  {row['test_loss']:>9.4f}  {row['test_accuracy']:>8.2%}  "
                f"{row['seconds']:>7.1f}",
                highlight=False,
            )


@contextmanager
def quiet_lightning() -> Iterator[None]:
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
