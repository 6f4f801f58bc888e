"""Runs read back from their folders, and grouped: those that differ only in the seed belong together."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fxhash.errors import TrainingError
from fxhash.smh.plan import CompressionPlan
from fxhash.storage.checkpoint import read_plan
from fxhash.training.folder import CURVES, MODEL, RESULT, RunOptions, read_configuration
from fxhash.training.recipe import Recipe, load_recipe, recipe_names

# Where files are and what else is written changes nothing that is computed.
_WITHOUT_EFFECT = ("seed", "data_folder", "tensorboard")


@dataclass(frozen=True)
class Outcome:
    """What `result.json` says of a finished run, as far as runs are compared by it.

    Attributes:
        trainable_before: trainable parameters of the dense model.
        trainable_after: those that were trained, everything counted.
        test_accuracy: fraction of the test images that are classified correctly.
        test_loss: cross entropy on the test images.
    """

    trainable_before: int
    trainable_after: int
    test_accuracy: float
    test_loss: float


@dataclass(frozen=True)
class Epoch:
    """One row of `metrics.csv`; `seconds` with the test at the end of the epoch."""

    epoch: int
    train_loss: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """What is known of a run, finished or not.

    Attributes:
        folder: where it lies.
        options: what was asked for.
        outcome: what came of it; None while it is not finished.
        curves: a value for each epoch that is over.
        file_bytes: size of the trained model's file; None if there is none.
        plan: where each parameter of a compressed model lies; None for a dense or an unfinished one.
    """

    folder: Path
    options: RunOptions
    outcome: Outcome | None
    curves: tuple[Epoch, ...]
    file_bytes: int | None
    plan: CompressionPlan | None

    @property
    def seconds(self) -> float:
        """Time of all epochs, also where the run was interrupted between them."""
        return sum(epoch.seconds for epoch in self.curves)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of some values; the deviation of one value is not known: None."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, in its order.

    Attributes:
        label: model and size, and whatever else is not the same in all groups, such as `"resnet8 10 %, epochs 30"`.
        runs: one or more.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def options(self) -> RunOptions:
        """What was asked for, with the seed of the first."""
        return self.runs[0].options

    @cached_property
    def finished(self) -> tuple[Run, ...]:
        """The runs that have an outcome, the first of each seed: a copy of a run is no further evidence."""
        by_seed: dict[int, Run] = {}
        for run in self.runs:
            if run.outcome is not None:
                by_seed.setdefault(run.options.seed, run)
        return tuple(by_seed.values())

    @property
    def trainable(self) -> int | None:
        """Trainable parameters of a finished run; None if there is none."""
        outcomes = [run.outcome for run in self.finished]
        return outcomes[0].trainable_after if outcomes and outcomes[0] is not None else None

    def accuracy(self) -> Spread:
        """Of the test accuracies of the finished runs."""
        return spread([run.outcome.test_accuracy for run in self.finished if run.outcome is not None])

    def loss(self) -> Spread:
        """Of the test losses of the finished runs."""
        return spread([run.outcome.test_loss for run in self.finished if run.outcome is not None])

    def seconds(self) -> Spread:
        """Of the times of the finished runs."""
        return spread([run.seconds for run in self.finished])


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation.

    Example:
        >>> spread([1.0, 2.0, 3.0]), spread([1.0])
        (Spread(mean=2.0, deviation=1.0), Spread(mean=1.0, deviation=None))
    """
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def compare(folders: Iterable[Path]) -> tuple[Group, ...]:
    """Read runs and group them: by data set, the largest models first, and those of unknown size last.

    A folder that is named twice counts once.

    Args:
        folders: one or more.

    Raises:
        TrainingError: if a folder holds no run, or a file in it can't be read.
        CheckpointError: if the file of a trained model is damaged.
    """
    runs = [read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(json.dumps(_settings(run.options)), []).append(run)
    settings = [_settings(same[0].options) for same in together.values()]
    different = {name for name in settings[0] for other in settings if other[name] != settings[0][name]}
    groups = [
        Group(_label(each, different), tuple(sorted(same, key=lambda run: run.options.seed)))
        for each, same in zip(settings, together.values(), strict=True)
    ]
    return tuple(sorted(groups, key=lambda group: (group.options.data, -(group.trainable or 0), group.label)))


def read_run(folder: Path) -> Run:
    """Read what a run has left so far.

    Raises:
        TrainingError: if the folder holds no run, or a file in it can't be read.
        CheckpointError: if the file of the trained model is damaged.
    """
    options, _ = read_configuration(folder)
    outcome, model = _read_outcome(folder / RESULT), folder / MODEL
    has_model = outcome is not None and model.exists()
    return Run(
        folder=folder,
        options=options,
        outcome=outcome,
        curves=_read_curves(folder / CURVES),
        file_bytes=model.stat().st_size if has_model else None,
        plan=read_plan(model) if has_model and options.compress is not None else None,
    )


def describe_recipe(recipe: Recipe) -> str:
    """A recipe's name and what was changed in it; its epochs are told apart.

    Example:
        >>> describe_recipe(load_recipe("digits").with_changes({"epochs": 2, "optimizer": "sgd"}))
        'digits, optimizer sgd'
    """
    named = load_recipe(recipe.name) if recipe.name in recipe_names() else Recipe(name=recipe.name)
    values, usual = recipe.to_dict(), named.to_dict()
    changed = [f"{name} {value}" for name, value in values.items() if name != "epochs" and value != usual[name]]
    return ", ".join([recipe.name, *changed])


def percent(fraction: float | None) -> str:
    """The size that was asked for.

    Example:
        >>> percent(0.1), percent(0.005), percent(None)
        ('10 %', '0.5 %', 'dense')
    """
    return "dense" if fraction is None else f"{100 * fraction:.6g} %"


def _settings(options: RunOptions) -> dict[str, Any]:
    """All that two runs must have in common to be told apart by their seeds alone."""
    values = options.to_dict()
    recipe = values.pop("recipe")
    return {name: value for name, value in values.items() if name not in _WITHOUT_EFFECT} | {
        "recipe" if name == "name" else name: value for name, value in recipe.items()
    }


def _label(settings: dict[str, Any], different: set[str]) -> str:
    further = [f"{name} {value}" for name, value in settings.items() if name in different - {"model", "compress"}]
    return ", ".join([f"{settings['model']} {percent(settings['compress'])}", *further])


def _read_outcome(path: Path) -> Outcome | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(
            int(values["trainable_before"]),
            int(values["trainable_after"]),
            float(values["test_accuracy"]),
            float(values["test_loss"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{str(path)!r} can't be read: {type(error).__name__}: {error}") from error


def _read_curves(path: Path) -> tuple[Epoch, ...]:
    names = [field.name for field in fields(Epoch)]
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [[float(row[name]) for name in names] for row in csv.DictReader(file)]
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise TrainingError(f"{str(path)!r} can't be read: {type(error).__name__}: {error}") from error
    return tuple(Epoch(int(epoch), *values) for epoch, *values in rows)
