"""A report on runs: a page of HTML that needs no other file, Markdown with a figure beside it, or a figure alone."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fxhash.errors import TrainingError
from fxhash.storage.atomic import replacing
from fxhash.training.report import figures
from fxhash.training.report.comparison import Group, Run, Spread, compare, describe_recipe, percent
from fxhash.version import __version__

ENDINGS = (".html", ".md", ".png")

_TITLE = "Training runs"
_ABOUT_RUNS = (
    "Runs that differ only in the seed stand together; their mean comes with the sample standard deviation over seeds. "
    "Seconds are those of all epochs, with the test after each."
)
_ABOUT_SIZE = "Squares are dense models, circles compressed ones; bars are the standard deviation over seeds."
_ABOUT_CURVES = "A line is a run, a colour the runs that differ only in the seed; dashed lines are not finished."
_NOTHING_FINISHED = "No run is finished."
_NO_CURVES = "No run has finished an epoch."


@dataclass(frozen=True)
class _Table:
    """A heading and rows of texts; those of `strong` are means."""

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()


def write_report(folders: Iterable[Path], output: Path) -> tuple[Path, ...]:
    """Compare runs in one document.

    Args:
        folders: the folders of one or more runs; what an unfinished one has so far is shown.
        output: where to write, replacing what is there. The ending decides: `.html` is a page that needs no other
            file; `.md` is Markdown, with its figures in a `.png` of the same name; `.png` is test accuracy over
            trainable parameters.

    Returns:
        The files that were written; each of them is whole or not there.

    Raises:
        TrainingError: if the ending is another, a folder holds no run, a file can't be read or written, or a figure
            is asked for and no run is finished.
        CheckpointError: if the file of a trained model is damaged.
    """
    if output.suffix not in ENDINGS:
        raise TrainingError(f"the ending of {str(output)!r} says no format: give one of {', '.join(ENDINGS)}")
    folders = list(folders)
    if not folders:
        raise TrainingError("there is nothing to report: give the folder of a run")
    groups = compare(folders)
    figure = output.with_suffix(".png")
    if output.suffix == ".html":
        contents = {output: _html(groups).encode("utf-8", "backslashreplace")}
    elif output.suffix == ".md":
        drawings = [draw for draw, has in _DRAWINGS.items() if has(groups)]
        contents = {figure: figures.as_png(*drawings, groups=groups)} if drawings else {}
        contents[output] = _markdown(groups, figure.name if drawings else None).encode("utf-8", "backslashreplace")
    elif _any_finished(groups):
        contents = {output: figures.as_png(figures.accuracy_over_size, groups=groups)}
    else:
        raise TrainingError("none of the runs is finished: an .html or .md has their curves")
    for path, content in contents.items():
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise TrainingError(f"{str(path)!r} can't be written: {error}") from error
    return tuple(contents)


def _any_finished(groups: Sequence[Group]) -> bool:
    return any(group.finished for group in groups)


def _any_curves(groups: Sequence[Group]) -> bool:
    return any(run.curves for group in groups for run in group.runs)


_DRAWINGS = {figures.accuracy_over_size: _any_finished, figures.curves: _any_curves}


def _runs_table(groups: Sequence[Group]) -> _Table:
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
    return _Table(heading, tuple(rows), frozenset(strong))


def _row(run: Run) -> tuple[str, ...]:
    options, outcome = run.options, run.outcome
    epochs = str(options.recipe.epochs)
    return (
        str(run.folder),
        *(options.model, options.data, percent(options.compress)),
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


def _with_deviation(spread: Spread, form: str) -> str:
    return f"{spread.mean:{form}} ± {spread.deviation:{form}}"


def _layers(groups: Sequence[Group]) -> list[tuple[str, _Table]]:
    """For each compressed model what became of its parameters; runs of the same plan share a table."""
    tables: dict[tuple[str, _Table], list[str]] = {}
    for group in groups:
        for run in group.runs:
            if run.plan is not None:
                heading, *rows = run.plan.table()
                tables.setdefault((group.label, _Table(heading, tuple(rows))), []).append(str(run.folder))
    return [(f"{label}: {', '.join(runs)}", table) for (label, table), runs in tables.items()]


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2em auto; padding: 0 1em }
div { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px }
th, td { padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap }
tr.mean { font-weight: bold; background: #f4f4f4 }
img { max-width: 100% }
summary { cursor: pointer }
"""


def _html(groups: Sequence[Group]) -> str:
    escape = html.escape
    lines = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{_TITLE}</title><style>{_STYLE}</style></head><body>',
        f"<h1>{_TITLE}</h1>",
        f"<p>{_ABOUT_RUNS}</p>",
        _html_table(_runs_table(groups)),
        "<h2>Accuracy over size</h2>",
        *(
            [
                f"<p>{_ABOUT_SIZE}</p>",
                _image("test accuracy over trainable parameters", groups, figures.accuracy_over_size),
            ]
            if _any_finished(groups)
            else [f"<p>{_NOTHING_FINISHED}</p>"]
        ),
        "<h2>Curves</h2>",
        *(
            [f"<p>{_ABOUT_CURVES}</p>", _image("train loss and test accuracy over epochs", groups, figures.curves)]
            if _any_curves(groups)
            else [f"<p>{_NO_CURVES}</p>"]
        ),
    ]
    layers = _layers(groups)
    if layers:
        lines.append("<h2>Layers of the compressed models</h2>")
    for title, table in layers:
        lines.append(f"<details><summary>{escape(title)}</summary>{_html_table(table)}</details>")
    lines.append(f"<p>fxhash {__version__}</p></body></html>")
    return "\n".join(lines) + "\n"


def _html_table(table: _Table) -> str:
    def line(cells: Iterable[str], tag: str, kind: str = "") -> str:
        return f"<tr{kind}>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = [line(row, "td", ' class="mean"' if index in table.strong else "") for index, row in enumerate(table.rows)]
    return "\n".join(["<div><table>", line(table.heading, "th"), *rows, "</table></div>"])


def _image(description: str, groups: Sequence[Group], drawing: figures.Drawing) -> str:
    data = base64.b64encode(figures.as_png(drawing, groups=groups)).decode("ascii")
    return f'<img alt="{description}" src="data:image/png;base64,{data}">'


def _markdown(groups: Sequence[Group], figure: str | None) -> str:
    lines = [f"# {_TITLE}", "", _ABOUT_RUNS, "", *_markdown_table(_runs_table(groups)), ""]
    if figure is not None:
        # In angle brackets a target may hold spaces, but none of these.
        target = re.sub(r"([\\<>])", r"\\\1", figure)
        about = [text for has, text in ((_any_finished, _ABOUT_SIZE), (_any_curves, _ABOUT_CURVES)) if has(groups)]
        lines += ["## Accuracy over size, and curves", "", " ".join(about), "", f"![figures](<{target}>)", ""]
    layers = _layers(groups)
    if layers:
        lines += ["## Layers of the compressed models", ""]
    for title, table in layers:
        lines += [f"### {_markdown_text(title)}", "", *_markdown_table(table), ""]
    return "\n".join([*lines, f"fxhash {__version__}", ""])


def _markdown_table(table: _Table) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [line(table.heading), line("---" for _ in table.heading)]
    for index, row in enumerate(table.rows):
        cells = [_markdown_text(cell) for cell in row]
        lines.append(line(f"**{cell}**" if cell and index in table.strong else cell for cell in cells))
    return lines


def _markdown_text(text: str) -> str:
    """Text that Markdown, and the HTML that it allows, take as it is; in one line."""
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
