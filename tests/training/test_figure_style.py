"""The one style of all figures."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402

from fxhash.training import figure_style as style  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
# What an eye that lacks one kind of cone sees of linear RGB (Machado, Oliveira and Fernandes, 2009).
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    value = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB."""
    share = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_colours_differ_for_every_eye(eye):
    seen = {colour: lab(EYES[eye] @ linear(colour)) for colour in style.PALETTE}
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 12, f"{one} and {other} look alike"


@pytest.mark.parametrize("colour", [*style.PALETTE, style.MUTED])
def test_colours_stand_out_from_white(colour):
    """The contrast that the guidelines for web content ask of graphics."""
    assert 1.05 / (TO_XYZ[1] @ linear(colour) + 0.05) >= 3


def test_a_marker_for_each_colour():
    assert len(set(style.MARKERS)) == len(style.MARKERS) == len(style.PALETTE)


def test_the_style_ends_with_its_block():
    before = dict(matplotlib.rcParams)
    with style.figure_style():
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(style.PALETTE)
    assert dict(matplotlib.rcParams) == before


def test_a_logarithmic_axis_has_plain_numbers():
    with style.figure_style():
        axes = Figure().subplots()
        axes.plot([900, 30_000], [1, 2])
        style.plain_log_axis(axes.xaxis)
        axes.figure.draw_without_rendering()
        assert {"1,000", "2,000", "5,000", "10,000", "20,000"} <= {
            label.get_text() for label in axes.xaxis.get_ticklabels()
        }
        style.plain_log_axis(axes.xaxis, "{:g} items", ticks=[3000])
        axes.figure.draw_without_rendering()
        assert [label.get_text() for label in axes.xaxis.get_ticklabels(which="both")] == ["3000 items"]
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


def test_names_with_dollar_signs_and_rare_letters_are_shown_as_they_are():
    with style.figure_style():
        figure = Figure()
        figure.subplots().set_title("$x^ \N{EGYPTIAN HIEROGLYPH A001}")
        figure.draw_without_rendering()


@pytest.mark.parametrize("count", [1, 6, 7, 30])
def test_as_many_colours_as_asked_for(count):
    assert len({matplotlib.colors.to_hex(colour) for colour in style.colours(count)}) == count


# The script of the demonstration's figure has the chart of the command draw it.
FIGURES = [
    *sorted(set((ROOT / "docs" / "figures").glob("*.py")) - {ROOT / "docs" / "figures" / "demo.py"}),
    ROOT / "fxhash" / "training" / "report" / "figures.py",
    ROOT / "fxhash" / "demo" / "chart.py",
]


@pytest.mark.parametrize("script", FIGURES, ids=lambda path: path.stem)
def test_figures_are_drawn_in_the_style(script):
    """Each enters it, and no file chooses colours for text, grid or lines of its own."""
    source = script.read_text()
    assert "with figure_style():" in source
    assert not re.search(r"tab10|#1f2933|#52606d|rc_context", source)
