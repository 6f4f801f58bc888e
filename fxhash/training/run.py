"""Runs: begun in a new folder, or resumed from its last checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxhash.errors import TrainingError
from fxhash.targets import modules_of, require_trust, trusting
from fxhash.training.checkpoints import RunCheckpoints
from fxhash.training.classifier import Classifier
from fxhash.training.data import ImageData, load_data
from fxhash.training.fitting import fit, tested_epochs
from fxhash.training.folder import (
    CONFIGURATION,
    MAY_CHANGE,
    RESULT,
    configuration_digest,
    load_teacher,
    network_target,
    read_configuration,
    trained_epochs,
    write_configuration,
)
from fxhash.training.initialization import initial_model
from fxhash.training.lock import claimed
from fxhash.training.options import RunOptions, RunResult
from fxhash.training.preprocessing import ReadsBytes
from fxhash.training.processes import is_first_process, refuse_unknown_device
from fxhash.training.recipe import Recipe
from fxhash.training.tensorboard import require_tensorboard
from fxhash.version import __version__

# A peak from which SGD needs batch norm.
_LARGE_RATE = 0.3


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
    refuse_unknown_device(options.device)
    if options.tensorboard:
        require_tensorboard()
    data = load_data(options.data, Path(options.data_folder), download, options.image_size)
    mean, std = data.statistics()
    # Who trains a factory's model trusts its module, also where a run to start from or to learn from names it.
    with trusting(modules_of(network_target(options))):
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
    if lacks_batch_norm(options.recipe, classifier) and is_first_process():
        console.print(
            f"This network has no batch norm, and SGD with a peak of {options.recipe.learning_rate:g} is for networks "
            "that have: --recipe small-images-adamw is for others.",
            highlight=False,
        )
    with claimed(folder, console):
        # Again: another run may have been here since.
        _refuse_another_run(folder)
        if is_first_process():
            write_configuration(folder, configuration)
        checkpoints = RunCheckpoints(folder, configuration_digest(configuration))
        return fit(classifier, options, data, folder, checkpoints, None, console, callbacks)


def resume(
    folder: Path,
    console: Console | None = None,
    changes: Mapping[str, Any] | None = None,
    download: bool = False,
) -> RunResult:
    """Go on with a run that was interrupted, to the same weights as if it had not been, or with a finished one.

    Args:
        folder: the folder of the run.
        console: where to print; standard output if omitted.
        changes: values to replace: `epochs`, which is more than before for a finished run, and of `RunOptions` where
            things are and what is shown: `data`, `data_folder`, `start`, `teacher`, `device` and `tensorboard`. With
            other epochs, the learning rate goes on where a run of so many would be by now.
        download: whether to fetch the data if it is not there.

    Raises:
        TrainingError: if the folder holds no run, one that is finished, or one that another process trains now; for
            other changes; for the device, the data and TensorBoard as in `train`.
        FolderError: as in `train`.
        TargetError: if its model is of a factory that is not trusted: see `fxhash.targets.trusting`.
        CheckpointError: if its checkpoints are damaged, or of another run.
    """
    begun, configuration = read_configuration(folder)
    require_trust(network_target(begun), folder / CONFIGURATION)
    options = _with_changes(begun, changes or {})
    console = console or Console()
    with claimed(folder, console):
        # The first process alone: it may have finished the run before another one looks.
        trained = trained_epochs(folder) if is_first_process() else None
        if trained is not None and options.recipe.epochs <= trained:
            raise TrainingError(
                f"the run in {str(folder)!r} is finished: its result is in {RESULT}. To go on with it, add --epochs "
                f"with more than {trained}"
            )
        refuse_unknown_device(options.device)
        if options.tensorboard:
            require_tensorboard()
        data = load_data(options.data, Path(options.data_folder), download, options.image_size)
        classifier = _build_classifier(options, data, configuration["mean"], configuration["std"])
        earlier = [*configuration.get("earlier", []), configuration_digest(configuration)]
        configuration = {**configuration, "options": options.to_dict(), "earlier": list(dict.fromkeys(earlier))}
        checkpoints = RunCheckpoints(folder, configuration_digest(configuration), earlier)
        checkpoint = checkpoints.find(console)
        if checkpoint is not None:
            _refuse_fewer_epochs(options.recipe.epochs, checkpoint[1], folder)
        if options != begun and is_first_process():
            write_configuration(folder, configuration)
        return fit(classifier, options, data, folder, checkpoints, checkpoint, console)


def lacks_batch_norm(recipe: Recipe, model: nn.Module) -> bool:
    """Whether a network lacks the batch norm that the large steps of a recipe with SGD need.

    In `docs/accuracy.md` such networks diverged, or learned little.
    """
    has_norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    return recipe.optimizer == "sgd" and recipe.learning_rate >= _LARGE_RATE and not has_norms


def _with_changes(options: RunOptions, changes: Mapping[str, Any]) -> RunOptions:
    wrong = [name for name in changes if name not in (*MAY_CHANGE, "epochs")]
    if wrong:
        raise TrainingError(
            f"a run goes on as it was begun, and can't change {', '.join(wrong)}: start a new one in another folder"
        )
    recipe = options.recipe.with_changes({"epochs": changes.get("epochs")})
    return replace(options, recipe=recipe, **{name: changes[name] for name in changes if name != "epochs"})


def _refuse_fewer_epochs(epochs: int, content: Mapping[str, Any], folder: Path) -> None:
    """Refuse to end before where a checkpoint is, or there without a test."""
    trained, tested = int(content.get("epoch", -1)) + 1, tested_epochs(content)
    if epochs < trained or tested < epochs == trained:
        raise TrainingError(
            f"the run in {str(folder)!r} was trained for {trained} epochs already: give more than that to --epochs"
        )


def _refuse_another_run(folder: Path) -> None:
    if (folder / CONFIGURATION).exists() and is_first_process():
        raise TrainingError(f"{str(folder)!r} holds a run already: add --resume to go on, or give another --output")


def _build_classifier(options: RunOptions, data: ImageData, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    teacher = None if options.teacher is None else load_teacher(Path(options.teacher), data)
    model = ReadsBytes(initial_model(options, data), mean, std)
    return Classifier(model, options.recipe, data.mirrored, options.seed, teacher, len(data.classes))
