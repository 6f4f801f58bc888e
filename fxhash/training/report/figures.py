"""Figures of runs: accuracy over size, and the curves of training."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias

from fxhash.training.figure_style import colours, figure_style, plain_log_axis
from fxhash.training.report.comparison import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    Drawing: TypeAlias = Callable[["Figure | SubFigure", Sequence[Group]], None]


# Letters of a line of a legend, in a figure of 8 inches: beside its half, over all of it, in one of two columns.
_LABEL_IN_AXES, _LABEL_OF_ONE, _LABEL_OF_TWO = 50, 110, 50


def accuracy_over_size(figure: Figure | SubFigure, groups: Sequence[Group]) -> None:
    """Test accuracy over trainable parameters: squares are dense, circles compressed; a line for each model and data.

    Bars are the standard deviation over seeds. Groups without a finished run are not drawn.
    """
    axes = figure.subplots()
    finished = [group for group in groups if group.finished]
    series: dict[tuple[str, str], list[Group]] = {}
    for group in finished:
        series.setdefault((group.options.network, group.options.data), []).append(group)
    for (model, data), members in series.items():
        points = sorted((group.trainable or 0, group.accuracy().mean) for group in members)
        (line,) = axes.plot(
            [size for size, _ in points],
            [100 * accuracy for _, accuracy in points],
            linewidth=1,
            label=_wrapped(f"{model} on {data}", _LABEL_IN_AXES),
        )
        for group in members:
            accuracy = group.accuracy()
            axes.errorbar(
                [group.trainable or 0],
                [100 * accuracy.mean],
                None if accuracy.deviation is None else [100 * accuracy.deviation],
                fmt="s" if group.options.compress is None else "o",
                color=line.get_color(),
                capsize=3,
            )
    sizes = [group.trainable or 1 for group in finished]
    plain_log_axis(axes.xaxis)
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(fontsize=8)


def curves(figure: Figure | SubFigure, groups: Sequence[Group]) -> None:
    """Train loss and test accuracy over epochs: a colour a group, a line a run, dashed while it is not finished."""
    loss, accuracy = figure.subplots(1, 2)
    columns = 2 if len(groups) > 1 and all(len(group.label) <= _LABEL_OF_TWO for group in groups) else 1
    labels = {group.label: _wrapped(group.label, _LABEL_OF_TWO if columns == 2 else _LABEL_OF_ONE) for group in groups}
    for group, colour in zip(groups, colours(len(groups)), strict=True):
        for index, run in enumerate(group.runs):
            epochs = [row.epoch for row in run.curves]
            style: dict[str, Any] = {
                "color": colour,
                "linewidth": 1,
                "linestyle": "--" if run.outcome is None else "-",
                "marker": "." if len(epochs) == 1 else "",
            }
            loss.plot(
                epochs, [row.train_loss for row in run.curves], label="" if index else labels[group.label], **style
            )
            accuracy.plot(epochs, [100 * row.test_accuracy for row in run.curves], **style)
    for axes, name in ((loss, "train loss"), (accuracy, "test accuracy (%)")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8)


def as_png(*drawings: Drawing, groups: Sequence[Group]) -> bytes:
    """One PNG image with the drawings below each other."""
    from matplotlib.figure import Figure

    with figure_style():
        width, height = size_of(groups)
        figure = Figure(figsize=(width, height * len(drawings)), layout="constrained")
        for draw, part in zip(drawings, figure.subfigures(len(drawings), 1, squeeze=False).flat, strict=True):
            draw(part, groups)
        with BytesIO() as file:
            figure.savefig(file, format="png")
            return file.getvalue()


def size_of(groups: Sequence[Group]) -> tuple[float, float]:
    """Width and height of a drawing in inches: legends grow with the groups, and with what these differ in."""
    return 8, 4 + 0.2 * sum(len(_wrapped(group.label, _LABEL_OF_ONE).splitlines()) for group in groups)


def _wrapped(label: str, width: int) -> str:
    """A label in lines that are no longer than so many letters."""
    return "\n".join(textwrap.wrap(label, width)) or label
