"""Functions that can't be followed: one node calls those that reach no weight and keep nothing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fxhash
from fxhash.capture.leaf_modules import FunctionCall
from fxhash.capture.weightless_functions import is_weightless
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs, skip_unless_sizes_are_recorded
from tests.odd import functions
from tests.odd.registry import Two

TRACED = [
    *("FunctionOffAutocast", "FunctionByMode", "FunctionBySign", "FunctionDraws", "FunctionChangesAValue"),
    *("FunctionChangesTheInput", "FunctionGivesTwo"),
]
OPAQUE = [
    *(f"Function_{function.__name__}" for function in functions.REACHING),
    *("FunctionGivesNone", "FunctionChangesAWeight", "FunctionGetsAViewOfAWeight", "FunctionReturnsAWeight"),
    *("FunctionFillsAList", "FunctionCallsALayer", "FunctionOfItsOwn"),
]


def _called(gm):
    return {module.function.__name__ for module in gm.modules() if isinstance(module, FunctionCall)}


@pytest.mark.parametrize("name", TRACED)
def test_one_node_calls_them(name):
    if name == "FunctionByMode":
        skip_unless_sizes_are_recorded()
    gm = fxhash.transform(getattr(functions, name)(), 0.9, seed=0)
    assert reasons(gm) == {}
    assert len(_called(gm)) == 1


@pytest.mark.parametrize("name", OPAQUE)
@pytest.mark.filterwarnings("ignore::fxhash.OpaqueWarning")
def test_others_leave_their_callers_opaque(name):
    traced = fxhash.trace(getattr(functions, name)())
    assert list(reasons(traced)) == ["opaque_part"]
    assert _called(traced) == set()


@pytest.mark.parametrize("function", functions.REACHING)
def test_what_reaches_more_is_known(function):
    assert not is_weightless(function)


def test_what_is_not_found_by_its_name_is_not_called():
    namespace: dict = {"__name__": functions.__name__}
    exec("def halves_swapped(x):\n    return x", namespace)
    assert not is_weightless(namespace["halves_swapped"])
    assert is_weightless(functions.halves_swapped)


def test_both_ways_of_a_branch_after_pickling_copying_and_lowering():
    gm = fxhash.transform(functions.FunctionBySign().eval(), 0.9, seed=0)
    dense = functions.FunctionBySign().eval()
    dense.load_state_dict(fxhash.materialize(gm).state_dict())
    forms = [gm, pickle.loads(pickle.dumps(gm)), copy.deepcopy(gm), fxhash.lower_for_deploy(gm)]
    for x in (torch.randn(4, 16) + 2, torch.randn(4, 16) - 2):
        for each in forms:
            assert_same_outputs(dense, each, x)


def test_a_mode_is_followed_at_each_call():
    model = functions.FunctionByMode()
    traced, x = fxhash.trace(model), torch.randn(4, 16)
    for training in (True, False, True):
        assert_same_outputs(model.train(training), traced.train(training), x, rtol=0)


def exists(value):
    return value is not None


class _Masks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x, mask):
        if exists(mask):
            x = x * mask
        x = self.layer(x)
        return x if exists(x) else mask


class _AsksTwice(Two):
    def __init__(self):
        super().__init__()
        self.masks = _Masks()

    def forward(self, x, mask=None):
        h = self.a(self.masks(x, mask))
        return self.b(h) if exists(h) else h


@pytest.mark.filterwarnings("ignore::fxhash.OpaqueWarning")
def test_what_can_be_followed_is_followed_at_each_call():
    """A function that can't be in one place is in others, and the reason is that of the first place."""
    traced = fxhash.trace(_AsksTwice())
    asks = "its forward asks whether it is None, or the same object as another"
    assert reasons(traced) == {"masks.opaque_part": asks}
    assert _called(traced) == set()


def test_functions_of_an_imported_module_stay_what_they_are():
    before = dict(vars(functions))
    fxhash.trace(functions.FunctionOffAutocast())
    assert dict(vars(functions)) == before


def test_exports_hold_what_the_function_computes():
    gm = fxhash.transform(functions.FunctionOffAutocast(), 0.9, seed=0).eval()
    x = torch.randn(4, 16)
    program = torch.export.export(fxhash.lower_for_deploy(gm), (x,), strict=False)
    assert_same_outputs(gm, program.module(), x)
