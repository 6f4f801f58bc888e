"""A progress bar for what takes minutes: in a terminal alone, and where rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


def with_bar(items: Iterable[Item], description: str) -> Iterator[Item]:
    """The items, while a bar on standard error says how many have been taken; it is gone at the end.

    Args:
        items: what to go through; how many there are is shown if they have a length.
        description: a word or two before the bar.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        yield from items
        return
    total = len(items) if isinstance(items, Sized) else None
    yield from track(items, description, total=total, console=Console(stderr=True), transient=True)


@contextmanager
def bar(description: str) -> Iterator[Callable[[float, str], None]]:
    """Give a function that shows how much is done, from 0 to 1, and a note, on a bar as that of `with_bar`.

    Args:
        description: a word or two before the bar.
    """
    try:
        if not sys.stderr.isatty():
            raise ImportError
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda share, note: None
        return
    columns = (TextColumn(description), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda share, note: progress.update(task, completed=share, description=note)
