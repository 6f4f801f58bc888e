"""Draw `accuracy_front.png` from `benchmarks/results/front.csv` and `front_bytes.csv`: accuracy over size.

Run it with `PYTHONPATH=benchmarks python docs/figures/accuracy_front.py`; it needs matplotlib.
"""

from collections.abc import Callable
from pathlib import Path

from front import EPOCHS
from front_table import Point, read_points
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fxhash.training.figure_style import DENSE, FXHASH, MUTED, figure_style, percent_axis, plain_log_axis

HERE = Path(__file__).parent
KINDS = {
    "resnet compressed": ("fxhash, of a ResNet", FXHASH, "o"),
    "convnext compressed": ("fxhash, of a ConvNeXt-like network", FXHASH, "D"),
    "resnet dense": ("dense ResNet", DENSE, "s"),
    "convnext dense": ("dense ConvNeXt-like network", DENSE, "^"),
}


def main(folder: Path = HERE) -> None:
    """Write the figure to a folder: that of this script if omitted."""
    points = read_points()
    with figure_style():
        figure = Figure(figsize=(11, 5), dpi=100)
        by_parameters, by_bytes = figure.subplots(1, 2, sharey=True)
        draw(by_parameters, [point for point in points if point.bits == 32], lambda point: point.parameters)
        draw(by_bytes, [point for point in points if point.size], lambda point: point.size)
        by_parameters.set_title("Test accuracy over trained parameters")
        by_parameters.set_xlabel("trained parameters")
        plain_log_axis(by_parameters.xaxis, ticks=(25_000, 50_000, 100_000, 250_000))
        by_parameters.set_xlim(20_000, 350_000)
        percent_axis(by_parameters.yaxis)
        by_parameters.legend(loc="lower right")
        by_bytes.set_title("Over bytes, in 32, 8 and 4 bits")
        by_bytes.set_xlabel("kilobytes of weights")
        plain_log_axis(by_bytes.xaxis, ticks=(20_000, 50_000, 100_000, 250_000, 1_000_000))
        by_bytes.set_xlim(12_000, 1_500_000)
        by_bytes.xaxis.set_major_formatter(lambda size, _: f"{size / 1e3:,.0f}")
        note = (
            f"CIFAR-10 (JPEG), 32 x 32 pixels, {EPOCHS} epochs. Lines: the best of all that are no larger. "
            "Bars: standard deviation over seeds."
        )
        figure.supxlabel(note, fontsize=9, color=MUTED, x=0.99, ha="right")
        figure.savefig(folder / "accuracy_front.png")


def draw(axes: Axes, points: list[Point], size: Callable[[Point], int]) -> None:
    """All points, and a line of steps through the best compressed and the best dense ones."""
    for kind, (label, color, marker) in KINDS.items():
        chosen = [point for point in points if point.kind == kind]
        if chosen:
            axes.errorbar(
                [size(point) for point in chosen],
                [point.mean for point in chosen],
                [point.deviation for point in chosen],
                label=label,
                color=color,
                marker=marker,
                linestyle="none",
                elinewidth=1.2,
            )
    for color, is_compressed in ((FXHASH, True), (DENSE, False)):
        best: list[Point] = []
        for point in sorted((each for each in points if each.is_compressed == is_compressed), key=size):
            if not best or point.mean > best[-1].mean:
                best.append(point)
        sizes, means = [size(point) for point in best], [point.mean for point in best]
        axes.step(sizes, means, where="post", color=color, linewidth=1, alpha=0.6)


if __name__ == "__main__":
    main()
