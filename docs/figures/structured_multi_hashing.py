"""Draw `structured_multi_hashing.png`: how a network's weights are generated, as published and by default.

Run it with `python docs/figures/structured_multi_hashing.py`; it needs matplotlib. Coordinates are pixels of
the figure, with the origin at the bottom left.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from fxhash.training.figure_style import DENSE, INK, MUTED, PANEL, figure_style

HERE = Path(__file__).parent
CELL, KERNEL_CELL, KERNEL = 26.0, 17.0, 3
TIMES = "\N{MULTIPLICATION SIGN}"
TRAINED, CONV1, CONV2, FC = "#334e68", "#8ecae6", "#f6ad6b", "#cdb4db"
# As published: name, number of elements and colour of each weight, one after another in the matrix.
PUBLISHED = (("conv1", 18, CONV1), ("conv2", 36, CONV2), ("fc", 18, FC))
# By default: name, rows, rank and colour of each weight; a row has an entry for each input channel and kernel.
DEFAULT = (("conv1", 1, 4, CONV1), ("conv2", 2, 3, CONV2), ("fc", 3, 2, FC))
IN_CHANNELS, KERNELS, FOLLOWED = 4, 2, 1


def main(folder: Path = HERE) -> None:
    """Write the figure to a folder: that of this script if omitted."""
    with figure_style():
        figure = Figure(figsize=(16, 9), dpi=100, layout="none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 1600), ylim=(0, 900))
        axes.set_axis_off()
        draw_title(axes)
        draw_published(axes, bottom=490)
        axes.add_patch(Rectangle((0, 0), 1600, 425, facecolor=PANEL))
        draw_default(axes, bottom=105)
        figure.savefig(folder / "structured_multi_hashing.png")


def draw_title(axes: Axes) -> None:
    """Write the title, and which colour means what."""
    write(axes, 50, 855, "Structured Multi-Hashing", size=24, weight="bold", align="left")
    for x, colours, label in (
        (900, [TRAINED], "trained and stored"),
        (1210, [CONV1, CONV2, FC], "generated when needed"),
    ):
        for index, colour in enumerate(colours):
            width = 27 / len(colours)
            axes.add_patch(Rectangle((x + index * width, 845), width, 20, facecolor=colour))
        write(axes, x + 40, 855, label, align="left")


def draw_published(axes: Axes, bottom: float) -> None:
    """Draw one rank for all weights, each of which is a slice of W, entry after entry."""
    rows, cols, rank = 6, 12, 2
    middle, top = bottom + rows * CELL / 2, bottom + rows * CELL
    head(axes, 795, "As published", "one rank for all; the weights are slices of W, entry after entry")
    left_x, right_x, matrix_x, weight_x = 85.0, 195.0, 570.0, 1170.0
    draw_cells(axes, left_x, bottom, rows, rank, TRAINED)
    label_above(axes, left_x + rank * CELL / 2, top, "left", f"rows {TIMES} rank")
    sign(axes, (left_x + rank * CELL + right_x) / 2, middle, TIMES)
    draw_cells(axes, right_x, middle - rank * CELL / 2, rank, cols, TRAINED)
    label_above(axes, right_x + cols * CELL / 2, middle + rank * CELL / 2, "right", f"rank {TIMES} cols")
    sign(axes, (right_x + cols * CELL + matrix_x) / 2, middle, "=")
    label_above(axes, matrix_x + cols * CELL / 2, top, "W", f"rows {TIMES} cols")
    start = 0
    for index, (name, numel, colour) in enumerate(PUBLISHED):
        for element in range(start, start + numel):
            row, col = divmod(element, cols)
            draw_cell(axes, matrix_x + col * CELL, top - (row + 1) * CELL, colour)
        if index == FOLLOWED:
            outline(axes, slice_corners(matrix_x, top, start, start + numel, cols))
        # In the middle of the rows that the slice fills.
        first, last = -(-start // cols), (start + numel) // cols
        write(axes, matrix_x + cols * CELL / 2, top - (first + last) / 2 * CELL, name, weight="bold")
        start += numel
    draw_scale(axes, matrix_x + cols * CELL + 14, weight_x - 24, middle)
    draw_weight(axes, weight_x, middle, 2, 2, f"scale {TIMES} slice of W, viewed as (out, in, 3, 3)")


def draw_default(axes: Axes, bottom: float) -> None:
    """Draw a rank for each weight, whose rows are its own, and the kernels that a separable convolution adds."""
    rows, cols = sum(count for _, count, _, _ in DEFAULT), IN_CHANNELS * KERNELS
    ranks = [rank for _, count, rank, _ in DEFAULT for _ in range(count)]
    rank = max(ranks)
    middle, top = bottom + rows * CELL / 2, bottom + rows * CELL
    head(
        axes,
        385,
        "The default of fxhash",
        "rows of its own for each weight, a higher rank for small ones, spatial kernels at small sizes",
    )
    left_x, right_x, matrix_x, kernel_x, weight_x = 85.0, 245.0, 520.0, 835.0, 1170.0
    label_above(axes, left_x + rank * CELL / 2, top, "left", "a rank for each weight")
    for row, filled in enumerate(ranks):
        y = top - (row + 1) * CELL
        draw_cells(axes, left_x, y, 1, filled, TRAINED)
    sign(axes, (left_x + rank * CELL + right_x) / 2, middle, TIMES)
    draw_cells(axes, right_x, middle - rank * CELL / 2, rank, cols, TRAINED)
    label_above(axes, right_x + cols * CELL / 2, middle + rank * CELL / 2, "right", "shared by all")
    sign(axes, (right_x + cols * CELL + matrix_x) / 2, middle, "=")
    label_above(axes, matrix_x + cols * CELL / 2, top, "W", "(in, kernels) in each row")
    first = 0
    for index, (name, count, used, colour) in enumerate(DEFAULT):
        y = top - (first + count) * CELL
        draw_cells(axes, matrix_x, y, count, cols, colour)
        write(axes, matrix_x + cols * CELL / 2, y + count * CELL / 2, name, weight="bold")
        if index == FOLLOWED:
            followed = y + count * CELL / 2
            outline(axes, corners(left_x, y, used * CELL, count * CELL))
            outline(axes, corners(matrix_x, y, cols * CELL, count * CELL))
            outline(axes, corners(right_x, middle + (rank / 2 - used) * CELL, cols * CELL, used * CELL))
        first += count
    sign(axes, (matrix_x + cols * CELL + kernel_x) / 2, followed, TIMES)
    block = KERNEL * KERNEL_CELL
    for index in range(KERNELS):
        draw_cells(axes, kernel_x + index * (block + 14), followed - block / 2, KERNEL, KERNEL, TRAINED, KERNEL_CELL)
    label_above(axes, kernel_x + block + 7, followed + block / 2, "kernels of conv2", f"2 of 3 {TIMES} 3")
    draw_scale(axes, kernel_x + 2 * block + 28, weight_x - 24, followed)
    draw_weight(axes, weight_x, followed, 2, IN_CHANNELS, f"scale {TIMES} sum of W[o, i, k] {TIMES} kernel[k] over k")
    write(
        axes,
        50,
        45,
        "Outlined: weight_p = scale_p * (left_p @ right[:rank_p]), here with rank_p = 3. "
        "A norm and a bias are small, and stay as they are.",
        align="left",
        colour=MUTED,
    )


def head(axes: Axes, y: float, title: str, sentence: str) -> None:
    """Write what a half of the figure shows."""
    text = axes.text(50, y, f"{title}:", fontsize=17, fontweight="bold", color=INK, verticalalignment="center_baseline")
    end = axes.transData.inverted().transform(text.get_window_extent())[1, 0]
    write(axes, end + 12, y, sentence, align="left")


def draw_weight(axes: Axes, x: float, middle: float, out: int, channels: int, detail: str) -> None:
    """Draw the kernels of a convolution, by output and input channels."""
    block, gap = KERNEL * KERNEL_CELL, 9.0
    width, height = channels * (block + gap) - gap, out * (block + gap) - gap
    bottom = middle - height / 2
    for row in range(out):
        for col in range(channels):
            corner = x + col * (block + gap), bottom + row * (block + gap)
            draw_cells(axes, *corner, KERNEL, KERNEL, CONV2, KERNEL_CELL)
    write(axes, x + width / 2, bottom - 20, "in", size=14, colour=MUTED)
    write(axes, x + width + 26, middle, "out", size=14, colour=MUTED)
    write(axes, x, bottom + height + 44, "conv2.weight", size=18, weight="bold", align="left")
    write(axes, x, bottom + height + 18, detail, size=12, colour=MUTED, align="left")


def draw_scale(axes: Axes, start: float, end: float, y: float) -> None:
    """Draw an arrow through the scale of the weight."""
    arrow = FancyArrowPatch((start, y), (end, y), arrowstyle="-|>", mutation_scale=22, shrinkA=0, shrinkB=0)
    arrow.set(linewidth=2.5, color=INK)
    axes.add_patch(arrow)
    x = (start + end) / 2 - 8
    pill = FancyBboxPatch((x - 30, y - 15), 60, 30, boxstyle="round,pad=2,rounding_size=8", zorder=3)
    pill.set(facecolor=TRAINED, edgecolor="white", linewidth=2)
    axes.add_patch(pill)
    write(axes, x, y, "scale", size=14, colour="white")


def slice_corners(x: float, top: float, start: int, end: int, cols: int) -> list[tuple[float, float]]:
    """Corners of the entries `start` to `end` of a matrix, row after row."""
    (first, indent), (last, rest) = divmod(start, cols), divmod(end, cols)
    at = [(indent, first), (cols, first), (cols, last), (rest, last), (rest, last + 1), (0, last + 1)]
    return [(x + col * CELL, top - row * CELL) for col, row in [*at, (0, first + 1), (indent, first + 1)]]


def corners(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    """Corners of a rectangle."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def outline(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw a frame around entries that are followed."""
    axes.add_patch(Polygon(points, fill=False, edgecolor=DENSE, linewidth=3, zorder=3))


def draw_cells(axes: Axes, x: float, bottom: float, rows: int, cols: int, colour: str, cell: float = CELL) -> None:
    """Draw a grid of cells of one colour."""
    for row in range(rows):
        for col in range(cols):
            draw_cell(axes, x + col * cell, bottom + row * cell, colour, cell)


def draw_cell(axes: Axes, x: float, y: float, colour: str, cell: float = CELL) -> None:
    """Draw one element of a matrix."""
    axes.add_patch(Rectangle((x, y), cell, cell, facecolor=colour, edgecolor="white", linewidth=1.2))


def label_above(axes: Axes, x: float, top: float, name: str, detail: str) -> None:
    """Write what an object is, and its shape, above it."""
    write(axes, x, top + 44, name, size=18, weight="bold")
    write(axes, x, top + 18, detail, size=12, colour=MUTED)


def sign(axes: Axes, x: float, y: float, character: str) -> None:
    """Write an operator between two objects."""
    write(axes, x, y, character, size=26)


def write(
    axes: Axes,
    x: float,
    y: float,
    content: str,
    size: float = 15,
    weight: str = "normal",
    colour: str = INK,
    align: str = "center",
) -> None:
    """Write text, centred in height on `y`."""
    axes.text(
        x,
        y,
        content,
        fontsize=size,
        fontweight=weight,
        color=colour,
        horizontalalignment=align,
        verticalalignment="center_baseline",
        zorder=4,
    )


if __name__ == "__main__":
    main()
