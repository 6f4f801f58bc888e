"""Tables as text, with columns as wide as their widest cell."""

from __future__ import annotations

from collections.abc import Sequence

from fxhash.printable import printable

# A cell that is wider takes the space that it needs, but makes no other row wider.
_WIDEST_COLUMN = 120


def text_table(rows: Sequence[Sequence[str]], underline: bool = False) -> str:
    """Rows of strings as lines of text, cells aligned to the left and two spaces apart.

    What a terminal doesn't show or would obey is shown as an escape.

    Args:
        rows: one string a column, the same number in each row; the first row is the heading.
        underline: whether a line of dashes follows the heading.

    Example:
        >>> print(text_table([("layer", "weights"), ("conv1", "432"), ("fc", "640")], underline=True))
        layer  weights
        -----  -------
        conv1  432
        fc     640
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [min(max(map(len, column)), _WIDEST_COLUMN) for column in zip(*rows, strict=True)]
    heading, *body = rows
    lines = [heading, *([["-" * width for width in widths]] if underline else []), *body]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
