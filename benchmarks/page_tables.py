"""Tables of records in pages of the documents, between marks that a reader doesn't see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Replace what stands between the marks of each table in a page.

    Args:
        page: the file.
        blocks: of `block`, by the tables' names.
    """
    text = page.read_text()
    for name, new in blocks.items():
        begin, end = marks(name)
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = before + new + after
    page.write_text(text)


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a table in the page."""
    return f"<!-- Table: {name}. -->\n", f"<!-- End of {name}. -->\n"


def block(name: str, lines: Iterable[str]) -> str:
    """The lines of a table with its marks; the marks alone if there is no line."""
    table = "\n".join(lines)
    begin, end = marks(name)
    return begin + (f"\n{table}\n\n" if table else "") + end
