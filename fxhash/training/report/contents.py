"""What a report on runs says, whatever its format: its sentences, and the cells of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxhash.training.report.comparison import Group, MeanAndDeviation, describe_recipe, percent
from fxhash.training.report.runs import Run

TITLE = "Training runs"
ABOUT_RUNS = (
    "Runs that differ only in the seed stand together; their mean comes with the sample standard deviation over seeds. "
    "Seconds are those of all epochs, with the test after each."
)
ABOUT_SIZE = "Squares are dense models, circles compressed ones; bars are the standard deviation over seeds."
ABOUT_CURVES = "A line is a run, a colour the runs that differ only in the seed; dashed lines are not finished."
NOTHING_FINISHED = "No run is finished."
NO_CURVES = "No run has finished an epoch."


@dataclass(frozen=True)
class Table:
    """A heading and rows of strings.

    Attributes:
        heading: names of the columns.
        rows: as many cells each.
        strong: which rows are means.
    """

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()


def any_finished(groups: Sequence[Group]) -> bool:
    """Whether a run is finished, so that there is an accuracy to draw."""
    return any(group.finished for group in groups)


def any_curves(groups: Sequence[Group]) -> bool:
    """Whether a run has finished an epoch, so that there are curves to draw."""
    return any(run.curves for group in groups for run in group.runs)


def runs_table(groups: Sequence[Group]) -> Table:
    """A row for each run, and one for the mean of a group with several finished seeds."""
    heading = (
        *("run", "model", "data", "compress", "parameters before", "after", "file, kB"),
        *("test accuracy", "test loss", "epochs", "seed", "recipe", "seconds"),
    )
    rows: list[tuple[str, ...]] = []
    strong = set()
    for group in groups:
        rows.extend(_row(run) for run in group.runs)
        if len(group.finished) > 1:
            strong.add(len(rows))
            rows.append(_mean_row(group))
    return Table(heading, tuple(rows), frozenset(strong))


def _row(run: Run) -> tuple[str, ...]:
    options, outcome = run.options, run.outcome
    epochs = str(options.recipe.epochs)
    return (
        str(run.folder),
        *(options.network, options.data, percent(options.compress)),
        *(("", "") if outcome is None else (f"{outcome.trainable_before:,}", f"{outcome.trainable_after:,}")),
        "" if run.file_bytes is None else f"{run.file_bytes / 1e3:,.1f}",
        *(("unfinished", "") if outcome is None else (f"{outcome.test_accuracy:.2%}", f"{outcome.test_loss:.4f}")),
        f"{len(run.curves)} of {epochs}" if outcome is None else epochs,
        str(options.seed),
        describe_recipe(options.recipe),
        f"{run.seconds:,.1f}",
    )


def _mean_row(group: Group) -> tuple[str, ...]:
    first, *_ = (_row(run) for run in group.finished)
    _, model, data, size, before, after, file, _, _, epochs, _, recipe, _ = first
    return (
        f"mean of {len(group.finished)} seeds",
        *(model, data, size, before, after, file),
        _with_deviation(group.accuracy(), ".2%"),
        _with_deviation(group.loss(), ".4f"),
        epochs,
        ", ".join(str(run.options.seed) for run in group.finished),
        recipe,
        _with_deviation(group.seconds(), ",.1f"),
    )


def _with_deviation(value: MeanAndDeviation, form: str) -> str:
    return f"{value.mean:{form}} ± {value.deviation:{form}}"


def layer_tables(groups: Sequence[Group]) -> list[tuple[str, Table]]:
    """For each compressed model what became of its parameters; runs of the same plan share a table."""
    tables: dict[tuple[str, Table], list[str]] = {}
    for group in groups:
        for run in group.runs:
            if run.plan is not None:
                heading, *rows = run.plan.table()
                tables.setdefault((group.label, Table(heading, tuple(rows))), []).append(str(run.folder))
    return [(f"{label}: {', '.join(runs)}", table) for (label, table), runs in tables.items()]
