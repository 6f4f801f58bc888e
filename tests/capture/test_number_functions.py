"""`int`, `len`, `torch.finfo` and the like of values: recorded in the thread that traces, untouched elsewhere."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import fxhash
from fxhash.capture.number_functions import RecordedNumber, SizesInTuple, number_functions
from fxhash.graph.numbers import to_int
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs, skip_unless_sizes_are_recorded
from tests.odd import numbers
from tests.odd.registry import Two


@pytest.mark.parametrize(
    "name",
    ["NumberOfSize", "LengthOfInput", "LargestAndSmallestSize", "RoundsSize", "SizesAsArguments"],
)
def test_of_any_size_and_after_pickling(name):
    if name == "SizesAsArguments":
        skip_unless_sizes_are_recorded()
    model = getattr(numbers, name)().eval()
    gm = fxhash.trace(model)
    assert reasons(gm) == {}
    for sizes in ((4, 16), (9, 16), (1, 16)):
        x = torch.randn(sizes)
        assert_same_outputs(model, gm, x, rtol=0)
        assert_same_outputs(model, pickle.loads(pickle.dumps(gm)), x, rtol=0)


class _Masks(Two):
    def forward(self, x):
        h = self.a(x)
        return self.b(h.masked_fill(h < 0, -torch.finfo(h.dtype).max).softmax(-1))


def test_limits_are_those_of_the_type_that_a_lowered_model_has():
    """Those of float32 would be infinite in float16, whose softmax is not a number where all are masked."""
    lowered = fxhash.lower_for_deploy(fxhash.transform(_Masks(), 0.9, seed=0), dtype=torch.bfloat16)
    (limits,) = [node for node in lowered.graph.nodes if getattr(node.target, "__name__", "") == "limits_of_floats"]
    assert isinstance(limits.args[0], torch.fx.Node)
    assert lowered(torch.randn(4, 16, dtype=torch.bfloat16)).isfinite().all()


def test_a_file_that_compares_a_function_by_identity_keeps_it():
    def forward(x):
        return int(x), len(x)

    found = {name for _, name, _ in number_functions(forward.__code__, forward.__globals__, 0)}
    assert found == {"len"}
    assert int is int


def test_nothing_is_left_after_a_trace():
    before = dict(vars(numbers)), torch.finfo, torch.zeros
    for kind in (numbers.NumberOfSize, numbers.LimitsOfType, numbers.SizesAsArguments):
        fxhash.trace(kind())
    assert (dict(vars(numbers)), torch.finfo, torch.zeros) == before


@pytest.mark.parametrize("given", [3.7, True])
def test_other_threads_call_the_functions(given):
    stand_in = RecordedNumber(int, to_int, thread=-1)
    assert stand_in(given) == int(given)
    assert isinstance(3, stand_in)
    assert not isinstance(3.7, stand_in)
    assert stand_in | None == int | None
    assert None | stand_in == None | int
    assert stand_in.from_bytes(b"a", "big") == 97
    assert SizesInTuple(torch.zeros, thread=-1)(2, 3).shape == (2, 3)


class _Loops(nn.Linear):
    def forward(self, x):
        for _ in range(x.shape[0]):
            x = super().forward(x)
        return x


def test_what_needs_a_number_at_once_says_so():
    assert list(reasons(fxhash.trace(_Loops(4, 4))).values()) == ["its forward makes a number of a value"]
