"""The chart of the demonstration: accuracy over the size of the file, and latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fxhash.demo.results import Result, standard_error
from fxhash.training.figure_style import DENSE, FXHASH, INK, QUANTIZED, figure_style, percent_axis, plain_log_axis

_COLOURS = {"dense": DENSE, "folded": DENSE, "narrower": DENSE, "int8": QUANTIZED}
_MARKERS = {"dense": "s", "narrower": "s", "int8": "^", "fxhash": "o", "fxhash int8": "D"}


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
    # That of folded batch norms is the dense network again.
    shown = [result for result in results if result.method != "folded"]
    for index, result in enumerate(shown):
        error = standard_error(result, test_images)
        axes.errorbar(
            [result.file_bytes / 1e3],
            [100 * result.accuracy],
            [100 * error],
            fmt=_MARKERS[result.method],
            color=_COLOURS.get(result.method, FXHASH),
        )
        axes.annotate(
            result.name,
            (result.file_bytes / 1e3, 100 * (result.accuracy - error)),
            # By turns higher and lower, where labels of neighbours would overlap.
            xytext=(0, -4 - 11 * (index % 2)),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="top",
            fontsize=7.5,
            color=INK,
        )
    plain_log_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    axes.margins(x=0.15, y=0.2)
    axes.set_xlabel("kB on disk")
    axes.set_title("Test accuracy", fontsize=10)


def _draw_latency(axes: Axes, results: Sequence[Result]) -> None:
    names = [result.name for result in results]
    axes.barh(
        names, [result.ratio for result in results], color=[_COLOURS.get(each.method, FXHASH) for each in results]
    )
    for index, result in enumerate(results):
        axes.annotate(
            f"{result.ratio:.2f}",
            (result.ratio, index),
            xytext=(3, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=8,
            color=INK,
        )
    axes.axvline(1, color=INK, linewidth=1, linestyle=":")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_title("Latency of one image, over dense", fontsize=10)
