"""What the demonstration measured, as a table, a plot and a file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from fxhash.version import __version__


@dataclass(frozen=True)
class Latency:
    """Median time of one forward call in milliseconds, and that time over the dense model's."""

    milliseconds: float
    ratio_to_dense: float


@dataclass(frozen=True)
class Result:
    """What was measured on one model.

    Attributes:
        name: `dense`, or the fraction of the parameters asked for, such as `10 %`.
        trainable_parameters: number of trainable parameters, everything counted.
        file_bytes: size of the saved file in bytes.
        trained_accuracy: fraction of the test images that the trained model gets right.
        deployed_accuracy: the same after saving, loading into a fresh model and lowering.
        largest_logit_difference: largest absolute difference between the logits of these two.
        latency: by batch size, how long the deployed model takes.
    """

    name: str
    trainable_parameters: int
    file_bytes: int
    trained_accuracy: float
    deployed_accuracy: float
    largest_logit_difference: float
    latency: Mapping[int, Latency]


def results_table(results: Sequence[Result]) -> Table:
    """Lay one or more results out in a table that fits 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption="latency: median of the deployed model, beside it the ratio to dense",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for heading in (
        "trainable\nparameters",
        "file\nkB",
        "trained\naccuracy",
        "deployed\naccuracy",
        "logits\ndiffer by",
        *(f"batch {batch_size}\nms (ratio)" for batch_size in results[0].latency),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.name,
            f"{result.trainable_parameters:,}",
            f"{result.file_bytes / 1e3:,.0f}",
            f"{result.trained_accuracy:.1%}",
            f"{result.deployed_accuracy:.1%}",
            f"{result.largest_logit_difference:.0e}",
            *(f"{entry.milliseconds:.2f} ({entry.ratio_to_dense:.2f})" for entry in result.latency.values()),
        )
    return table


def plot_accuracy(results: Sequence[Result], test_images: int, path: Path) -> None:
    """Draw the deployed models' test accuracy over their trainable parameters, as a PNG file.

    Bars show the standard error `sqrt(p * (1 - p) / test_images)` of each accuracy `p`.
    """
    sizes = [result.trainable_parameters for result in results]
    accuracies = [100 * result.deployed_accuracy for result in results]
    errors = [(accuracy * (100 - accuracy) / test_images) ** 0.5 for accuracy in accuracies]
    figure = Figure(figsize=(6, 4), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.plot(sizes, accuracies, color="0.7", zorder=1)
    axes.errorbar(sizes[:1], accuracies[:1], errors[:1], fmt="s", color="0.25", capsize=3)
    axes.errorbar(sizes[1:], accuracies[1:], errors[1:], fmt="o", color="tab:blue", capsize=3)
    for result, size, accuracy, error in zip(results, sizes, accuracies, errors, strict=True):
        axes.annotate(
            f"{result.name}\n{accuracy:.1f} %",
            (size, accuracy - error),
            xytext=(0, -8),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="top",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.12)
    # Five points at least, so that noise looks like noise; room for the labels below.
    bottom = min(95, 100 - 1.3 * (100 - min(accuracies)))
    axes.set_ylim(bottom, 100 + 0.1 * (100 - bottom))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("ResNet-8 on scikit-learn's digits, dense and with fxhash", fontsize=10)
    axes.grid(visible=True, color="0.93")
    axes.set_axisbelow(True)
    figure.savefig(path)


def write_results(results: Sequence[Result], epochs: int, seed: int, path: Path) -> None:
    """Write the results to a JSON file, with the command, the versions and the machine."""
    report = {
        "command": f"fxhash demo --epochs {epochs}",
        "fxhash": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread used",
        "epochs": epochs,
        "seed": seed,
        "results": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
