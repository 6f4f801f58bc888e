"""The one visual style of all figures: of the documents, the demonstration and reports.

```python
with figure_style():
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    axes.plot(sizes, accuracies, color=FXHASH, marker="o")
    axes.set_title("Test accuracy")
    plain_log_axis(axes.xaxis, ticks=(1_000, 10_000))
    figure.savefig(path)
```
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axis import XAxis, YAxis

# Text and lines, labels of axes, the grid, and areas behind something.
INK, MUTED, GRID, PANEL = "#1f2933", "#52606d", "#e4e7eb", "#f5f7fa"

# Told apart with each kind of colour blindness, and seen well on white; markers tell them apart where all is grey.
FXHASH, DENSE, QUANTIZED = "#0072b2", "#d55e00", "#009e73"
PALETTE = (FXHASH, DENSE, QUANTIZED, "#882255", "#8a7fe0", INK)
MARKERS = ("o", "s", "^", "D", "v", "P")

# Parameters of matplotlib: axes without a box over a pale grid, titles at the left, legends without a frame.
STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "figure.facecolor": "white",
        "figure.dpi": 150,
        "savefig.dpi": "figure",
        "figure.constrained_layout.use": True,
        "axes.prop_cycle": f"cycler('color', {list(PALETTE)})",
        "axes.axisbelow": True,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "errorbar.capsize": 3,
        "grid.color": GRID,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "lines.linewidth": 2,
        "text.color": INK,
        "text.parse_math": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
    }
)


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw and save figures in this style.

    Text is shown as it is: dollar signs in names start no formula, and letters that the font lacks raise no warning.
    """
    import matplotlib

    parameters: Any = dict(STYLE)
    with matplotlib.rc_context(parameters), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def plain_log_axis(axis: XAxis | YAxis, form: str = "{:,.0f}", ticks: Sequence[float] | None = None) -> None:
    """Make an axis logarithmic, with plain numbers instead of powers of ten.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        form: how a number is written, as for `str.format`, such as `"{:.0%}"`.
        ticks: where the numbers stand; at 1, 2 and 5 times the powers of ten if omitted.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if ticks is None else FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))


def percent_axis(axis: XAxis | YAxis) -> None:
    """Write the numbers of an axis, which are per cent, with their sign."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))


def colours(count: int) -> list[Any]:
    """So many colours: those of the palette, or where these are too few, of a scale from blue to red."""
    from matplotlib import colormaps

    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [colormaps["turbo"](index / (count - 1)) for index in range(count)]
