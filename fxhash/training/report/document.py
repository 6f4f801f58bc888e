"""A report on runs: a page of HTML that needs no other file, Markdown with a figure beside it, or a figure alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from fxhash.errors import TrainingError
from fxhash.storage.atomic import replacing
from fxhash.training.folder import CONFIGURATION
from fxhash.training.report import figures
from fxhash.training.report.comparison import compare
from fxhash.training.report.contents import any_curves, any_finished
from fxhash.training.report.html_page import html_page
from fxhash.training.report.markdown_page import markdown_page

FILE_EXTENSIONS = (".html", ".md", ".png")

_DRAWINGS = {figures.accuracy_over_size: any_finished, figures.curves: any_curves}


def write_report(
    folders: Iterable[Path], output: Path, warn: Callable[[str], object] = warnings.warn
) -> tuple[Path, ...]:
    """Compare runs in one document.

    Args:
        folders: the folders of one or more runs; what an unfinished one has so far is shown, and what is no run among
            others, such as a report, is left out.
        output: where to write, replacing what is there. The file extension decides: `.html` is a page that needs no
            other file; `.md` is Markdown, with its figures in `NAME.figures.png` beside `NAME.md`; `.png` is test
            accuracy over trainable parameters.
        warn: is called with a line for each folder that is left out.

    Returns:
        The files that were written; each of them is whole or not there.

    Raises:
        TrainingError: if the file extension is another, no folder holds a run, a file can't be read or written, or a
            figure is asked for and no run is finished.
        CheckpointError: if the file of a trained model is damaged.
    """
    if output.suffix not in FILE_EXTENSIONS:
        raise TrainingError(f"the file extension of {str(output)!r} must be one of {', '.join(FILE_EXTENSIONS)}")
    folders = list(folders)
    if not folders:
        raise TrainingError("there is nothing to report: give the folder of a run")
    runs = [folder for folder in folders if (folder / CONFIGURATION).exists()]
    for folder in folders if runs else ():
        if folder not in runs:
            warn(f"{str(folder)!r} is left out: it holds no run, since it has no {CONFIGURATION}")
    groups = compare(runs or folders)
    # Not the name of a report that is a figure.
    figure = output.with_suffix(".figures.png")
    if output.suffix == ".html":
        contents = {output: html_page(groups).encode("utf-8", "backslashreplace")}
    elif output.suffix == ".md":
        drawings = [draw for draw, has in _DRAWINGS.items() if has(groups)]
        contents = {figure: figures.as_png(*drawings, groups=groups)} if drawings else {}
        contents[output] = markdown_page(groups, figure.name if drawings else None).encode("utf-8", "backslashreplace")
    elif any_finished(groups):
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
