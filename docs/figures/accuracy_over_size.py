"""Draw `accuracy_over_size.png` from `benchmarks/results/accuracy.csv`: test accuracy over trained parameters.

Run it with `PYTHONPATH=benchmarks python docs/figures/accuracy_over_size.py`; it needs matplotlib.
"""

from pathlib import Path

from accuracy_table import Cell, read_cells, title
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fxhash.training.figure_style import DENSE, FXHASH, MUTED, PALETTE, figure_style, percent_axis, plain_log_axis

HERE = Path(__file__).parent
RECORDS = HERE.parent.parent / "benchmarks" / "results" / "accuracy.csv"
*_, WINE, VIOLET, INK = PALETTE
COMPRESSED = {
    "fxhash-16-taught": ("fxhash, distilled from the dense ResNet-20", VIOLET, "D"),
    "fxhash-16": ("fxhash, of ResNet-20", FXHASH, "o"),
    "square-smh": ("Structured Multi-Hashing as published, of ResNet-20", WINE, "v"),
    "random-hash": ("random hashing, of ResNet-20", INK, "P"),
}
# Dense networks that are small to begin with; the first is the strongest rival.
NARROW = {"resnet8": (DENSE, "s", "-"), "resnet14": (DENSE, "X", ":"), "resnet20": (DENSE, "^", "--")}
TICKS = (5_000, 10_000, 20_000, 50_000, 100_000, 200_000)


def main(folder: Path = HERE) -> None:
    """Write the figure to a folder: that of this script if omitted."""
    cells = [cell for cell in read_cells(RECORDS) if len(cell.accuracies) > 1]
    (data,) = {cell.run.data for cell in cells}
    (pixels,) = {cell.run.image_size for cell in cells}
    (epochs,) = {cell.run.epochs for cell in cells}
    with figure_style():
        figure = Figure(figsize=(9, 6), dpi=100)
        axes = figure.subplots()
        for variant, (label, color, marker) in COMPRESSED.items():
            chosen = [cell for cell in cells if cell.run.variant == variant and cell.run.network == "resnet20"]
            draw(axes, chosen, label, color, marker, "-")
        for family, (color, marker, line) in NARROW.items():
            chosen = [cell for cell in cells if (cell.run.variant, cell.run.network.split("x")[0]) == ("dense", family)]
            draw(axes, chosen, f"dense {title(family)} of several widths", color, marker, line)
        axes.set_title(f"Test accuracy on {data}, {pixels} x {pixels} pixels, {epochs} epochs")
        axes.set_xlabel("trained parameters")
        plain_log_axis(axes.xaxis, ticks=TICKS)
        percent_axis(axes.yaxis)
        axes.legend(loc="lower right")
        figure.supxlabel("mean and standard deviation of three seeds", fontsize=9, color=MUTED, x=0.99, ha="right")
        figure.savefig(folder / "accuracy_over_size.png")


def draw(axes: Axes, cells: list[Cell], label: str, color: str, marker: str, line: str) -> None:
    """One line with error bars, from the smallest network to the largest."""
    cells = sorted(cells, key=lambda cell: cell.trained)
    axes.errorbar(
        [cell.trained for cell in cells],
        [100 * cell.mean for cell in cells],
        [100 * cell.deviation for cell in cells],
        label=label,
        color=color,
        marker=marker,
        linestyle=line,
        elinewidth=1.2,
    )


if __name__ == "__main__":
    main()
