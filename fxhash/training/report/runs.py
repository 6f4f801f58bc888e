"""Runs read back from their folders, finished or not."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, fields
from pathlib import Path

from fxhash.errors import TrainingError
from fxhash.smh.plan import CompressionPlan
from fxhash.storage.reading import read_plan
from fxhash.training.folder import CURVES, MODEL, RESULT, read_configuration
from fxhash.training.options import RunOptions


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
    """One row of `metrics.csv`; `seconds` are those since the row before, with the test at the end of the epoch."""

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
        curves: a value for each epoch with a test.
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


def read_run(folder: Path) -> Run:
    """Read what a run has left so far.

    Raises:
        TrainingError: if the folder holds no run, or a file in it can't be read.
        CheckpointError: if the file of the trained model is damaged.
    """
    options, _ = read_configuration(folder)
    outcome, model = _read_outcome(folder / RESULT, options.recipe.epochs), folder / MODEL
    has_model = outcome is not None and model.exists()
    return Run(
        folder=folder,
        options=options,
        outcome=outcome,
        curves=_read_curves(folder / CURVES),
        file_bytes=model.stat().st_size if has_model else None,
        plan=read_plan(model) if has_model and options.compress is not None else None,
    )


def _read_outcome(path: Path, epochs: int) -> Outcome | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if int(values.get("epochs", epochs)) < epochs:
            return None  # Of a finished run that goes on.
        return Outcome(
            int(values["trainable_before"]),
            int(values["trainable_after"]),
            float(values["test_accuracy"]),
            float(values["test_loss"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
