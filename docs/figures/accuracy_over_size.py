"""Draw `accuracy_over_size.png` from `benchmarks/results/accuracy.csv`: test accuracy over trained parameters.

Run it with `PYTHONPATH=benchmarks python docs/figures/accuracy_over_size.py`; it needs matplotlib.
"""

from pathlib import Path

from accuracy_table import Cell, read_cells, title
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

HERE = Path(__file__).parent
RECORDS = HERE.parent.parent / "benchmarks" / "results" / "accuracy.csv"
INK, MUTED = "#1f2933", "#52606d"
COMPRESSED = {
    "fxhash-16": ("fxhash, of ResNet-20", "#0b7285", "o"),
    "fxhash-16-taught": ("fxhash, taught by the dense ResNet-20", "#22b8cf", "*"),
    "square-smh": ("Structured Multi-Hashing as published, of ResNet-20", "#e8590c", "s"),
    "random-hash": ("random hashing, of ResNet-20", "#c2255c", "v"),
}
DENSE = {"resnet8": ("#adb5bd", "^"), "resnet14": ("#868e96", "D"), "resnet20": ("#343a40", "P")}
TICKS = (5_000, 10_000, 20_000, 50_000, 100_000, 200_000)


def main() -> None:
    """Write the figure beside this script."""
    cells = read_cells(RECORDS)
    figure = Figure(figsize=(9, 5.5), dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for variant, (label, color, marker) in COMPRESSED.items():
        chosen = [cell for cell in cells if cell.run.variant == variant and cell.run.network == "resnet20"]
        draw(axes, chosen, label, color, marker, "-")
    for family, (color, marker) in DENSE.items():
        chosen = [cell for cell in cells if cell.run.variant == "dense" and cell.run.network.split("x")[0] == family]
        draw(axes, chosen, f"dense {title(family)} of several widths", color, marker, "--")
    axes.set(xscale="log", xlabel="trained parameters")
    axes.set_title("Test accuracy, mean and standard deviation of three seeds", color=INK, loc="left", weight="bold")
    axes.set_xticks(TICKS)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED)
    axes.legend(frameon=False, labelcolor=INK)
    figure.savefig(HERE / "accuracy_over_size.png")


def draw(axes: Axes, cells: list[Cell], label: str, color: str, marker: str, line: str) -> None:
    """One line with error bars, from the smallest network to the largest."""
    cells = sorted((cell for cell in cells if len(cell.accuracies) > 1), key=lambda cell: cell.trained)
    axes.errorbar(
        [cell.trained for cell in cells],
        [100 * cell.mean for cell in cells],
        [100 * cell.deviation for cell in cells],
        label=label,
        color=color,
        marker=marker,
        linestyle=line,
        capsize=3,
    )


if __name__ == "__main__":
    main()
