"""Branches on training flags that choose numbers are traced; those that choose anything else are not."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import fxhash
from tests.capture.reasons import full_reasons, reasons
from tests.helpers import assert_same_outputs
from tests.odd import modes
from tests.odd.registry import Two

BRANCHES = "its forward branches on a value that is a training flag"


@pytest.mark.parametrize("name", ["ModeChoosesNumber", "ModeOfTwoModulesChoosesNumbers", "ModeOfEachModuleInTurn"])
def test_numbers_follow_the_mode_after_the_transform(name):
    model = getattr(modes, name)()
    gm, x = fxhash.trace(model), torch.randn(4, 16)
    assert reasons(gm) == {}
    for training in (True, False, True):
        assert_same_outputs(model.train(training), gm.train(training), x, rtol=0)
    assert_same_outputs(gm, pickle.loads(pickle.dumps(gm)), x, rtol=0)


def test_the_flag_of_one_module_alone():
    model = modes.ModeOfTwoModulesChoosesNumbers()
    gm, x = fxhash.trace(model), torch.randn(4, 16)
    model.norm.train()
    assert not torch.equal(model(x), gm(x))
    assert_same_outputs(model.train(), gm.train(), x, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        *("ModeChoosesLayer", "ModeChoosesWeight", "ModeChoosesBetweenValues", "ModeChoosesOperation"),
        *("ModeChoosesResult", "ModeChoosesTensor"),
    ],
)
def test_other_branches_are_opaque_and_say_where(name):
    model = getattr(modes, name)()
    (reason,) = full_reasons(fxhash.trace(model)).values()
    assert reason.what == BRANCHES
    first = type(model).forward.__code__.co_firstlineno
    assert reason.where.startswith("tests/odd/modes.py:")
    assert first < int(reason.where.partition(":")[2].partition(" ")[0]) <= first + 3
    assert "p if self.training else 0.0" in reason.hint


def test_what_changes_in_one_mode_is_not_traced():
    assert list(reasons(fxhash.trace(modes.CountsInOneMode())).values()) == ["its forward changes 'count'"]


class _FiveModes(Two):
    def __init__(self):
        super().__init__()
        self.others = nn.ModuleList(nn.Identity() for _ in range(4))

    def forward(self, x):
        for other in self.others:
            x = x * (2.0 if other.training else 3.0)
        return self.b(self.a(x))


def test_many_modes_in_one_forward_are_not_traced():
    """Each of them would double the time."""
    assert list(reasons(fxhash.trace(_FiveModes())).values()) == [BRANCHES]
