"""Runs in groups: those that differ only in the seed belong together, and have a mean."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fxhash.training.options import RunOptions
from fxhash.training.recipe import Recipe, load_recipe, recipe_names
from fxhash.training.report.runs import Run, read_run

# Where files are and what else is measured or written changes nothing that is trained.
_WITHOUT_EFFECT = ("seed", "data_folder", "tensorboard", "test_each_epoch")


@dataclass(frozen=True)
class MeanAndDeviation:
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

    def accuracy(self) -> MeanAndDeviation:
        """Of the test accuracies of the finished runs."""
        return mean_and_deviation([run.outcome.test_accuracy for run in self.finished if run.outcome is not None])

    def loss(self) -> MeanAndDeviation:
        """Of the test losses of the finished runs."""
        return mean_and_deviation([run.outcome.test_loss for run in self.finished if run.outcome is not None])

    def seconds(self) -> MeanAndDeviation:
        """Of the times of the finished runs."""
        return mean_and_deviation([run.seconds for run in self.finished])


def mean_and_deviation(values: Sequence[float]) -> MeanAndDeviation:
    """Mean and sample standard deviation.

    Example:
        >>> mean_and_deviation([1.0, 2.0, 3.0]), mean_and_deviation([1.0])
        (MeanAndDeviation(mean=2.0, deviation=1.0), MeanAndDeviation(mean=1.0, deviation=None))
    """
    return MeanAndDeviation(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


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


def describe_recipe(recipe: Recipe) -> str:
    """A recipe's name and what was changed in it; its epochs are told apart.

    Example:
        >>> describe_recipe(load_recipe("digits").with_changes({"epochs": 2, "schedule": "cosine"}))
        'digits, schedule cosine'
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
    del values["model_options"]
    values["model"] = options.network
    return {name: value for name, value in values.items() if name not in _WITHOUT_EFFECT} | {
        "recipe" if name == "name" else name: value for name, value in recipe.items()
    }


def _label(settings: dict[str, Any], different: set[str]) -> str:
    further = [f"{name} {value}" for name, value in settings.items() if name in different - {"model", "compress"}]
    return ", ".join([f"{settings['model']} {percent(settings['compress'])}", *further])
