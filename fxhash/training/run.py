"""Runs: begun in a new folder, or resumed from its last checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from fxhash.errors import TrainingError
from fxhash.targets import require_trust, trusting
from fxhash.training.checkpoints import RunCheckpoints
from fxhash.training.classifier import Classifier
from fxhash.training.data import ImageData, load_data
from fxhash.training.fitting import fit
from fxhash.training.folder import (
    CONFIGURATION,
    RESULT,
    configuration_digest,
    load_teacher,
    network_target,
    read_configuration,
    write_configuration,
)
from fxhash.training.initialization import build_model
from fxhash.training.lock import claimed
from fxhash.training.options import RunOptions, RunResult
from fxhash.training.preprocessing import ReadsBytes
from fxhash.training.processes import check_device, is_first_process
from fxhash.training.tensorboard import require_tensorboard
from fxhash.version import __version__


def train(
    options: RunOptions,
    folder: Path,
    download: bool = False,
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train a model from its initialization.

    Args:
        options: what to train.
        folder: a new folder for the run: `run.json`, `run.lock`, `checkpoints/last.ckpt` and the one before,
            `metrics.csv`, and in the end `model.safetensors` and `result.json`.
        download: whether to fetch the data if it is not there.
        console: where to print; standard output if omitted.
        callbacks: callbacks of Lightning, in addition to those of every run.

    Raises:
        TrainingError: if the folder holds a run already, the device or the data are not there, the loss is not finite,
            or the package for TensorBoard is missing where its curves are asked for.
        FolderError: if the folder can't be written to; the run can be resumed, or started again, as the message says.
        UnknownModelError: if the zoo has no such model.
        TargetError: if there is no such model elsewhere, or it can't be built.
        BudgetError: if the model can't be made that small.
        CheckpointError: if the file of a model to start from, or of a teacher, is damaged.
    """
    _refuse_another_run(folder)
    check_device(options.device)
    if options.tensorboard:
        require_tensorboard()
    data = load_data(options.data, Path(options.data_folder), download, options.image_size)
    mean, std = data.statistics()
    # Who trains a factory's model trusts its module, also where a run to start from or to learn from names it.
    with trusting([network_target(options).source]):
        classifier = _build_classifier(options, data, mean, std)
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
    console = console or Console()
    with claimed(folder, console):
        # Again: another run may have been here since.
        _refuse_another_run(folder)
        if is_first_process():
            write_configuration(folder, configuration)
        checkpoints = RunCheckpoints(folder, configuration_digest(configuration))
        return fit(classifier, options, data, folder, checkpoints, None, console, callbacks)


def resume(folder: Path, console: Console | None = None) -> RunResult:
    """Go on with a run that was interrupted, to the same weights as if it had not been.

    Raises:
        TrainingError: if the folder holds no run, one that is finished, or one that another process trains now; for
            TensorBoard as in `train`.
        FolderError: as in `train`.
        TargetError: if its model is of a factory that is not trusted: see `fxhash.targets.trusting`.
        CheckpointError: if its checkpoints are damaged, or of another run.
    """
    options, configuration = read_configuration(folder)
    require_trust(network_target(options), folder / CONFIGURATION)
    console = console or Console()
    with claimed(folder, console):
        # The first process alone: it may have finished the run before another one looks.
        if (folder / RESULT).exists() and is_first_process():
            raise TrainingError(f"the run in {str(folder)!r} is finished: its result is in {RESULT}")
        check_device(options.device)
        if options.tensorboard:
            require_tensorboard()
        data = load_data(options.data, Path(options.data_folder), False, options.image_size)
        classifier = _build_classifier(options, data, configuration["mean"], configuration["std"])
        checkpoints = RunCheckpoints(folder, configuration_digest(configuration))
        return fit(classifier, options, data, folder, checkpoints, checkpoints.find(console), console)


def _refuse_another_run(folder: Path) -> None:
    if (folder / CONFIGURATION).exists() and is_first_process():
        raise TrainingError(f"{str(folder)!r} holds a run already: add --resume to go on, or give another --output")


def _build_classifier(options: RunOptions, data: ImageData, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    teacher = None if options.teacher is None else load_teacher(Path(options.teacher), data)
    model = ReadsBytes(build_model(options, data), mean, std)
    return Classifier(model, options.recipe, data.mirrored, options.seed, teacher)
