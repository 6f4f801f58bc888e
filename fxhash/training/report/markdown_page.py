"""A report in Markdown, with its figures in another file."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from fxhash.training.report.comparison import Group
from fxhash.training.report.contents import (
    ABOUT_CURVES,
    ABOUT_RUNS,
    ABOUT_SIZE,
    TITLE,
    Table,
    any_curves,
    any_finished,
    layer_tables,
    runs_table,
)
from fxhash.version import __version__


def markdown_page(groups: Sequence[Group], figure: str | None) -> str:
    """The text of the report.

    Args:
        groups: the runs.
        figure: name of the file of the figures; None if there are none.
    """
    lines = [f"# {TITLE}", "", ABOUT_RUNS, "", *markdown_table(runs_table(groups)), ""]
    if figure is not None:
        # In angle brackets a target may hold spaces, but none of these.
        target = re.sub(r"([\\<>])", r"\\\1", figure)
        about = [text for has, text in ((any_finished, ABOUT_SIZE), (any_curves, ABOUT_CURVES)) if has(groups)]
        lines += ["## Accuracy over size, and curves", "", " ".join(about), "", f"![figures](<{target}>)", ""]
    layers = layer_tables(groups)
    if layers:
        lines += ["## Layers of the compressed models", ""]
    for title, table in layers:
        lines += [f"### {escaped(title)}", "", *markdown_table(table), ""]
    return "\n".join([*lines, f"fxhash {__version__}", ""])


def markdown_table(table: Table) -> list[str]:
    """The lines of the table."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [line(table.heading), line("---" for _ in table.heading)]
    for index, row in enumerate(table.rows):
        cells = [escaped(cell) for cell in row]
        lines.append(line(f"**{cell}**" if cell and index in table.strong else cell for cell in cells))
    return lines


def escaped(text: str) -> str:
    """Text that Markdown, and the HTML that it allows, take as it is; in one line."""
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
