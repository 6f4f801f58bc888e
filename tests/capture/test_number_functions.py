"""`int`, `len`, `torch.finfo` and the like of values: recorded in the thread that traces, untouched elsewhere."""

from __future__ import annotations

import builtins
import pickle

import pytest
import torch
from torch import nn

import fxhash
from fxhash.capture.number_functions import number_functions
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs
from tests.odd import numbers
from tests.odd.registry import Two


@pytest.mark.parametrize(
    "name",
    ["NumberOfSize", "LengthOfInput", "LargestAndSmallestSize", "RoundsSize", "SizesAsArguments", "LimitsOfType"],
)
def test_of_any_size_and_after_pickling(name):
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


def test_other_threads_see_the_functions_and_nothing_is_left():
    before = dict(vars(numbers)), torch.finfo
    model = numbers.NumberOfSize()
    fxhash.trace(model)
    fxhash.trace(numbers.LimitsOfType())
    assert (dict(vars(numbers)), torch.finfo) == before
    assert "int" not in vars(numbers)
    assert builtins.int is int


class _Loops(nn.Linear):
    def forward(self, x):
        for _ in range(x.shape[0]):
            x = super().forward(x)
        return x


def test_what_needs_a_number_at_once_says_so():
    assert list(reasons(fxhash.trace(_Loops(4, 4))).values()) == ["its forward makes a number of a value"]
