"""The names of `fxhash.training`, each of which is imported when it is first asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("lightning")

from fxhash import training
from fxhash.training.recipe import Recipe


@pytest.mark.parametrize("name", training.__all__)
def test_every_name_is_there(name):
    assert getattr(training, name).__name__ == name
    assert name in dir(training)


def test_a_name_is_that_of_its_file():
    assert training.Recipe is Recipe


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match=r"module 'fxhash\.training' has no attribute 'Recipes'"):
        _ = training.Recipes


def test_a_recipe_needs_no_lightning():
    code = "import sys; from fxhash.training import load_recipe; load_recipe('digits'); "
    code += "sys.exit('lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
