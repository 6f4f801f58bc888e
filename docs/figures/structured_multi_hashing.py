"""Draw `structured_multi_hashing.png`: how Structured Multi-Hashing generates a network's weights.

Run it with `python docs/figures/structured_multi_hashing.py`; it needs matplotlib. Coordinates are pixels of
the figure, with the origin at the bottom left.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from fxhash.training.figure_style import INK, MUTED, PANEL, figure_style

ROWS, COLS, RANK = 8, 12, 2
CELL, KERNEL_CELL = 30.0, 23.0
TIMES = "\N{MULTIPLICATION SIGN}"
TRAINED = "#334e68"
# Name, number of elements and colour of each run, in the order in which they fill the matrix, each from its own row.
RUNS = (("conv1", 18, "#8ecae6"), ("conv2", 36, "#f6ad6b"), ("…", 12, "#d9e2ec"), ("fc", 20, "#cdb4db"))
# Of the four runs this one is followed to its layer: its kernel has 2 output and 2 input channels of 3x3.
FOLLOWED, OUT, IN, KERNEL = 1, 2, 2, 3


def main() -> None:
    """Write the figure beside this script."""
    with figure_style():
        figure = Figure(figsize=(16, 7), dpi=100, layout="none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 1600), ylim=(0, 700))
        axes.set_axis_off()
        draw_title(axes)
        draw_product(axes, bottom=270)
        draw_kernel(axes, x=1230, middle=435)
        draw_counts(axes)
        figure.savefig(Path(__file__).with_suffix(".png"))


def draw_title(axes: Axes) -> None:
    """Write the title, one sentence and the legend."""
    write(axes, 50, 655, "Structured Multi-Hashing", size=24, weight="bold", align="left")
    write(
        axes,
        50,
        613,
        "The weights of each layer are rows of one matrix W, the product of two small factors.",
        align="left",
    )
    for x, colours, label in (
        (970, [TRAINED], "trained and stored"),
        (1240, [colour for _, _, colour in RUNS], "generated when needed"),
    ):
        for index, colour in enumerate(colours):
            width = 24 / len(colours)
            axes.add_patch(Rectangle((x + index * width, 645), width, 20, facecolor=colour))
        write(axes, x + 36, 655, label, align="left")


def draw_product(axes: Axes, bottom: float) -> None:
    """Draw `left x right = W`, with the layers' runs in W."""
    middle = bottom + ROWS * CELL / 2
    left_x, right_x, matrix_x = 60.0, 190.0, 620.0
    draw_cells(axes, left_x, bottom, ROWS, RANK, TRAINED)
    label_above(axes, left_x + RANK * CELL / 2, bottom + ROWS * CELL, "left", f"rows {TIMES} rank")
    write(axes, (left_x + RANK * CELL + right_x) / 2, middle, TIMES, size=28)
    draw_cells(axes, right_x, middle - RANK * CELL / 2, RANK, COLS, TRAINED)
    label_above(axes, right_x + COLS * CELL / 2, middle + RANK * CELL / 2, "right", f"rank {TIMES} cols")
    write(axes, (right_x + COLS * CELL + matrix_x) / 2, middle, "=", size=28)
    label_above(axes, matrix_x + COLS * CELL / 2, bottom + ROWS * CELL, "W", f"rows {TIMES} cols")
    start = 0
    for index, (name, numel, colour) in enumerate(RUNS):
        draw_run(axes, matrix_x, bottom, start, numel, colour, outlined=index == FOLLOWED)
        x, y = label_position(start, numel)
        write(axes, matrix_x + x * CELL, bottom + y * CELL, name, weight="bold")
        start += -(-numel // COLS) * COLS


def draw_kernel(axes: Axes, x: float, middle: float) -> None:
    """Draw the arrow from the followed run, through its scale, to the kernel that it becomes."""
    block, gap = KERNEL * KERNEL_CELL, 12.0
    width, height = IN * (block + gap) - gap, OUT * (block + gap) - gap
    bottom = middle - height / 2
    draw_arrow(axes, (988, middle), (x - 28, middle))
    pill = FancyBboxPatch((1052, middle - 16), 66, 32, boxstyle="round,pad=2,rounding_size=8", zorder=3)
    pill.set(facecolor=TRAINED, edgecolor="white", linewidth=2)
    axes.add_patch(pill)
    write(axes, 1085, middle, "scale", size=14, colour="white")
    for row in range(OUT):
        for col in range(IN):
            corner = x + col * (block + gap), bottom + row * (block + gap)
            draw_cells(axes, *corner, KERNEL, KERNEL, RUNS[FOLLOWED][2], KERNEL_CELL)
    write(axes, x + width / 2, bottom - 20, "in", size=14, colour=MUTED)
    write(axes, x + width + 24, middle, "out", size=14, colour=MUTED)
    detail = f"scale {TIMES} slice of W, viewed as (out, in, kh, kw)"
    label_above(axes, x + width / 2, bottom + height, "conv2.weight", detail)


def draw_counts(axes: Axes) -> None:
    """Write what is trained, and compare two counts as bars."""
    axes.add_patch(Rectangle((0, 0), 1600, 210, facecolor=PANEL))
    write(axes, 50, 165, "What is trained", size=18, weight="bold", align="left")
    for y, line in (
        (122, "left and right, shared by every layer"),
        (86, "one scale per layer"),
        (50, "norms and biases: small, kept as they are"),
    ):
        axes.add_patch(Rectangle((50, y - 6), 12, 12, facecolor=TRAINED))
        write(axes, 76, y, line, align="left")
    write(axes, 620, 165, "Trained weights of ResNet-34 at 2 %", size=18, weight="bold", align="left")
    for y, millions, label in ((117, 21.3, "21.3 M"), (62, 0.43, "0.43 M")):
        length = 700 * millions / 21.3
        dense = millions > 1
        axes.add_patch(Rectangle((740, y - 15), length, 30, facecolor="#bcccdc" if dense else TRAINED))
        write(axes, 726, y, "dense" if dense else "hashed", align="right")
        write(axes, 740 + length + 14, y, label, weight="bold", align="left")


def draw_cells(axes: Axes, x: float, bottom: float, rows: int, cols: int, colour: str, cell: float = CELL) -> None:
    """Draw a grid of cells of one colour."""
    for row in range(rows):
        for col in range(cols):
            draw_cell(axes, x + col * cell, bottom + row * cell, colour, cell)


def draw_cell(axes: Axes, x: float, y: float, colour: str, cell: float = CELL) -> None:
    """Draw one element of a matrix."""
    axes.add_patch(Rectangle((x, y), cell, cell, facecolor=colour, edgecolor="white", linewidth=1.2))


def draw_run(axes: Axes, x: float, bottom: float, start: int, numel: int, colour: str, outlined: bool) -> None:
    """Draw the elements `start` to `start + numel` of W, row by row from the top left, and leave the last row empty."""
    for element in range(start + numel, -(-(start + numel) // COLS) * COLS):
        row, col = divmod(element, COLS)
        draw_cell(axes, x + col * CELL, bottom + (ROWS - 1 - row) * CELL, PANEL)
    for element in range(start, start + numel):
        row, col = divmod(element, COLS)
        draw_cell(axes, x + col * CELL, bottom + (ROWS - 1 - row) * CELL, colour)
    if outlined:
        first, end = start // COLS, -(-(start + numel) // COLS)
        place = (x, bottom + (ROWS - end) * CELL)
        size = (COLS * CELL, (end - first) * CELL)
        axes.add_patch(Rectangle(place, *size, fill=False, edgecolor=INK, linewidth=2.5, zorder=3))


def label_position(start: int, numel: int) -> tuple[float, float]:
    """Centre, in cells from the bottom left of W, of the rows that a run takes."""
    first, end = start // COLS, -(-(start + numel) // COLS)
    return COLS / 2, ROWS - (first + end) / 2


def label_above(axes: Axes, x: float, top: float, name: str, detail: str) -> None:
    """Write what an object is, and its shape, above it."""
    write(axes, x, top + 44, name, size=18, weight="bold")
    write(axes, x, top + 18, detail, size=14, colour=MUTED)


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a straight arrow."""
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=22, shrinkA=0, shrinkB=0)
    arrow.set(linewidth=2.5, color=INK)
    axes.add_patch(arrow)


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
    )


if __name__ == "__main__":
    main()
