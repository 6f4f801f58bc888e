"""Warnings of the package in the command's own form."""

from __future__ import annotations

import warnings

import pytest

from fxhash.cli.errors import one_line_errors
from fxhash.errors import OpaqueWarning


@pytest.mark.filterwarnings("always")
def test_a_warning_of_ours_is_printed_as_the_commands(capsys):
    before = warnings.showwarning
    text = "much\n  net\n  capture='modules' ...\n  print(fxhash.summary(gm).table)"
    with one_line_errors():
        warnings.warn(text, OpaqueWarning, stacklevel=1)
    assert capsys.readouterr().err == "fxhash: warning: much\n  net\n"
    assert warnings.showwarning is before


def test_any_other_is_left_to_python(capsys):
    with pytest.warns(UserWarning, match="of torch") as caught, one_line_errors():
        warnings.warn("of torch", UserWarning, stacklevel=1)
    assert caught[0].filename == __file__
    assert capsys.readouterr().err == ""
