"""Warnings of the package in the command's own form."""

from __future__ import annotations

import warnings

import pytest

from fxhash.cli.errors import one_line_errors
from fxhash.errors import OpaqueWarning


@pytest.mark.filterwarnings("always")
def test_a_warning_of_ours_is_printed_as_the_commands(capsys):
    before = warnings.showwarning
    with one_line_errors():
        warnings.warn(
            "much\n  net\n  capture='modules' ...\n  print(fxhash.summary(gm).table)", OpaqueWarning, stacklevel=1
        )
    assert capsys.readouterr().err == "fxhash: warning: much\n  net\n"
    assert warnings.showwarning is before


@pytest.mark.filterwarnings("always")
def test_any_other_keeps_its_place_in_the_code(capsys):
    with one_line_errors():
        warnings.warn("of torch", UserWarning, stacklevel=1)
    error = capsys.readouterr().err
    assert "test_warnings.py" in error
    assert not error.startswith("fxhash:")
