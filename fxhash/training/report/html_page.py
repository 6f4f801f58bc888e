"""A report as a page of HTML that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from fxhash.training.report import figures
from fxhash.training.report.comparison import Group
from fxhash.training.report.contents import (
    ABOUT_CURVES,
    ABOUT_RUNS,
    ABOUT_SIZE,
    NO_CURVES,
    NOTHING_FINISHED,
    TITLE,
    Table,
    any_curves,
    any_finished,
    layer_tables,
    runs_table,
)
from fxhash.version import __version__

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2em auto; padding: 0 1em }
div { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px }
th, td { padding: 3px 6px; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap }
.runs th, .runs td:nth-child(1), .runs td:nth-child(2), .runs td:nth-child(12) { white-space: normal }
.runs td:nth-child(1), .runs td:nth-child(12) { overflow-wrap: anywhere; min-width: 8em }
tr.mean { font-weight: bold; background: #f4f4f4 }
img { max-width: 100% }
summary { cursor: pointer; overflow-wrap: anywhere }
"""


def html_page(groups: Sequence[Group]) -> str:
    """The page, with its figures in it."""
    escape = html.escape
    lines = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title><style>{STYLE}</style></head><body>',
        f"<h1>{TITLE}</h1>",
        f"<p>{ABOUT_RUNS}</p>",
        html_table(runs_table(groups), "runs"),
        "<h2>Accuracy over size</h2>",
        *(
            [
                f"<p>{ABOUT_SIZE}</p>",
                _image("test accuracy over trainable parameters", groups, figures.accuracy_over_size),
            ]
            if any_finished(groups)
            else [f"<p>{NOTHING_FINISHED}</p>"]
        ),
        "<h2>Curves</h2>",
        *(
            [f"<p>{ABOUT_CURVES}</p>", _image("train loss and test accuracy over epochs", groups, figures.curves)]
            if any_curves(groups)
            else [f"<p>{NO_CURVES}</p>"]
        ),
    ]
    layers = layer_tables(groups)
    if layers:
        lines.append("<h2>Layers of the compressed models</h2>")
    for title, table in layers:
        lines.append(f"<details><summary>{escape(title)}</summary>{html_table(table)}</details>")
    lines.append(f"<p>fxhash {__version__}</p></body></html>")
    return "\n".join(lines) + "\n"


def html_table(table: Table, name: str = "layers") -> str:
    """The table, in a box that scrolls where it is too wide; `name` is the class of its style."""

    def line(cells: Iterable[str], tag: str, kind: str = "") -> str:
        return f"<tr{kind}>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = [line(row, "td", ' class="mean"' if index in table.strong else "") for index, row in enumerate(table.rows)]
    return "\n".join([f'<div class="{name}"><table>', line(table.heading, "th"), *rows, "</table></div>"])


def _image(description: str, groups: Sequence[Group], drawing: figures.Drawing) -> str:
    data = base64.b64encode(figures.as_png(drawing, groups=groups)).decode("ascii")
    return f'<img alt="{description}" src="data:image/png;base64,{data}">'
