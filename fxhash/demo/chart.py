"""The chart of the demonstration: accuracy over the size of the file, and latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fxhash.demo.results import Result, standard_error
from fxhash.training.figure_style import DENSE, FXHASH, GRID, INK, QUANTIZED, figure_style, percent_axis, plain_log_axis

_COLOURS = {"int8": QUANTIZED, "fxhash": FXHASH, "fxhash int8": FXHASH}
_MARKERS = {"dense": "s", "narrower": "s", "int8": "^", "fxhash": "o", "fxhash int8": "D"}
# Where a label stands: offset in points, its alignments, and whether it starts from the top or the foot of the bar.
_LABELS = {
    "dense": ((0, -4), "center", "top", -1),
    "int8": ((7, 0), "left", "center", 0),
    "narrower": ((7, 0), "left", "center", 0),
    "fxhash": ((7, -8), "left", "top", 0),
    "fxhash int8": ((0, 3), "center", "bottom", 1),
}


def plot_results(results: Sequence[Result], title: str, test_images: int, path: Path) -> None:
    """Draw the results, as a PNG file.

    Args:
        results: of all forms.
        title: what was trained, on what.
        test_images: from which the standard errors of accuracies follow, which are drawn as bars.
        path: of the file.
    """
    with figure_style():
        figure = Figure(figsize=(9, 3.8), dpi=120)
        left, right = figure.subplots(1, 2, width_ratios=(5, 4))
        figure.suptitle(title, x=0.01, horizontalalignment="left", color=INK, fontsize=12, fontweight="bold")
        _draw_accuracy(left, results, test_images)
        _draw_latency(right, results)
        figure.savefig(path)


def _draw_accuracy(axes: Axes, results: Sequence[Result], test_images: int) -> None:
    # With its batch norms folded, the dense network is as accurate and large as before.
    shown = [result for result in results if result.method != "folded"]
    sizes = [result for result in shown if result.method == "fxhash"]
    axes.plot([each.file_bytes / 1e3 for each in sizes], [100 * each.accuracy for each in sizes], color=GRID, zorder=1)
    for result in shown:
        error = 100 * standard_error(result, test_images)
        x, y = result.file_bytes / 1e3, 100 * result.accuracy
        axes.errorbar([x], [y], [error], fmt=_MARKERS[result.method], color=_colour(result))
        position, horizontal, vertical, from_bar = _LABELS[result.method]
        axes.annotate(
            result.name,
            (x, y + from_bar * error),
            xytext=position,
            textcoords="offset points",
            horizontalalignment=horizontal,
            verticalalignment=vertical,
            fontsize=8,
            color=_colour(result),
        )
    plain_log_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("kB on disk")
    axes.set_title("Test accuracy", fontsize=10)


def _draw_latency(axes: Axes, results: Sequence[Result]) -> None:
    names = [result.name for result in results]
    axes.barh(names, [result.ratio for result in results], color=[_colour(result) for result in results])
    for index, result in enumerate(results):
        axes.annotate(
            f"{result.ratio:.2f}",
            (result.ratio, index),
            xytext=(-4, 0),
            textcoords="offset points",
            horizontalalignment="right",
            verticalalignment="center",
            fontsize=8,
            color="white",
        )
    axes.axvline(1, color=INK, linewidth=1, linestyle=":")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_title("Latency of one image, over dense", fontsize=10)


def _colour(result: Result) -> str:
    return _COLOURS.get(result.method, DENSE)
