"""A comparison as a table in the terminal, and as HTML, Markdown or JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from fxhash.compare.rows import Comparison, Row
from fxhash.errors import CheckpointError
from fxhash.printable import printable
from fxhash.storage.atomic import write_bytes
from fxhash.training.report.contents import Table
from fxhash.training.report.html_page import STYLE, html_table
from fxhash.training.report.markdown_page import escaped, markdown_table
from fxhash.version import __version__

_WIDEST = 1000
FILE_EXTENSIONS = (".html", ".md", ".json")

_EXPLANATION = (
    "Files hold weights or factors in float32, bfloat16 or 8 bits; of ONNX there is one file. Work is multiply-adds "
    "(MAC) of matrix products, convolutions and attention in one call. Latency is the median, and the median of its "
    "ratio to the dense model in eager mode, called in turn. Resident bytes are those of weights, with the scratch "
    "memory that some are generated into; of ONNX those of the constants of the optimized graph. Accuracy is not "
    "compared: that takes training."
)


def check_output(path: Path) -> None:
    """Refuse a file whose extension says nothing.

    Raises:
        CheckpointError: if it is none of `FILE_EXTENSIONS`.
    """
    if path.suffix not in FILE_EXTENSIONS:
        raise CheckpointError(f"the file extension of {str(path)!r} must be one of {', '.join(FILE_EXTENSIONS)}")


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison to a file, which is complete or not there; what is there is replaced.

    Args:
        comparison: what to write.
        path: the file; its extension is `.html` (a page that needs no other file), `.md` or `.json`.

    Raises:
        CheckpointError: for another extension, or if the file can't be written.
    """
    check_output(path)
    write = {".html": _html, ".md": _markdown, ".json": _json}[path.suffix]
    write_bytes(path, write(comparison).encode("utf-8", "backslashreplace"))


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table, which fits 80 columns unless a number is very long, and what is to be known with it."""
    table = _terminal_table(comparison)
    width = console.width
    # A terminal may wrap it, but nothing is cut off.
    console.width = max(width, console.measure(table, options=console.options.update(width=_WIDEST)).maximum)
    console.print(table)
    console.width = width
    for line in lines_below(comparison):
        console.print()
        console.print(line, markup=False, highlight=False)


def _terminal_table(comparison: Comparison) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    content = forms_table(comparison)
    for index, heading in enumerate(content.heading):
        table.add_column(heading.replace(", ", "\n"), justify="right" if index else "left", no_wrap=True)
    for row, (_, *cells) in zip(comparison.rows, content.rows, strict=True):
        table.add_row(row.short_name, *cells)
    return table


def forms_table(comparison: Comparison) -> Table:
    """A row for each form, with one unit a column."""
    rows = comparison.rows
    size_unit, size = _unit([row.file_bytes.get("float32") for row in rows], {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9})
    work_unit, work = _unit([row.multiply_adds for row in rows], {"MAC": 1, "kMAC": 1e3, "MMAC": 1e6, "GMAC": 1e9})
    heading = (
        *("form", "parameters", f"float32, {size_unit}", f"bfloat16, {size_unit}", f"8 bits, {size_unit}"),
        *(f"work, {work_unit}", "latency, ms", "latency, / dense", f"resident, {size_unit}"),
    )
    return Table(heading, tuple(_cells(row, size, work) for row in rows))


def lines_below(comparison: Comparison) -> list[str]:
    """What stands below the table, a paragraph each: how it was captured, what to know, and at last what is best."""
    captured = f"Captured: {comparison.captured}."
    if comparison.opaque_parts:
        parts = (
            f"{part.path or 'the whole model'} ({part.share:.1%} of the generated weights): {part.reason}"
            for part in comparison.opaque_parts
        )
        captured += f" Not traced, and called as a whole: {'; '.join(parts)}."
    conditions = (
        f"On {', '.join(comparison.inputs)}, with {comparison.threads} thread{'s' if comparison.threads > 1 else ''} "
        f"({comparison.machine})."
    )
    below = [conditions, captured, *comparison.notes, f"Recommended: {comparison.recommendation}"]
    return [printable(line) for line in below]


def _cells(row: Row, size: Callable[[int | None], str], work: Callable[[int | None], str]) -> tuple[str, ...]:
    files = (size(row.file_bytes.get(dtype)) for dtype in ("float32", "bfloat16", "int8"))
    latency = (f"{row.milliseconds:,.2f}", f"{row.ratio:.2f}")
    return row.name, f"{row.parameters:,}", *files, work(row.multiply_adds), *latency, size(row.resident_bytes)


def _unit(values: list[int | None], units: dict[str, float]) -> tuple[str, Callable[[int | None], str]]:
    """The largest unit of which the largest value is ten or more, and how values are written in it."""
    largest = max((value for value in values if value is not None), default=0)
    name = [unit for unit, each in units.items() if largest >= 10 * each or each == 1][-1]

    def write(value: int | None) -> str:
        return "" if value is None else f"{value / units[name]:,.{0 if units[name] == 1 else 1}f}"

    return name, write


def _title(comparison: Comparison) -> str:
    return f"{printable(comparison.target)}, dense and compressed"


def _html(comparison: Comparison) -> str:
    title = html.escape(_title(comparison))
    paragraphs = [f"<p>{html.escape(line)}</p>" for line in [*lines_below(comparison), _EXPLANATION]]
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        html_table(forms_table(comparison)),
        *paragraphs,
        f"<p>fxhash {__version__}</p></body></html>",
    ]
    return "\n".join(lines) + "\n"


def _markdown(comparison: Comparison) -> str:
    lines = [f"# {escaped(_title(comparison))}", "", *markdown_table(forms_table(comparison)), ""]
    for line in [*lines_below(comparison), _EXPLANATION]:
        lines += [escaped(line), ""]
    return "\n".join([*lines, f"fxhash {__version__}", ""])


def _json(comparison: Comparison) -> str:
    return json.dumps(asdict(comparison), indent=1) + "\n"
