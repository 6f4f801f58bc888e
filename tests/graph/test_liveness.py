"""Which values of a graph are changed in place."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from fxhash.graph.liveness import changed_in_place, is_changed_in_place


def changed(function):
    """Whether a function of `w` and `x` changes `w`, and whether it changes `x`."""
    w, x, *_ = fx.Tracer().trace(function).nodes
    return is_changed_in_place(w), is_changed_in_place(x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda w, x: w.add_(x), (True, False)),
        (lambda w, x: w.view(-1).add_(x), (True, False)),
        (lambda w, x: x.add_(w), (False, True)),
        (lambda w, x: x.add_(w.reshape(-1).unsqueeze(0)), (False, True)),
        (lambda w, x: torch.cat((w, x)).add_(1), (False, False)),
        (lambda w, x: torch.repeat_interleave(w, 3, dim=0).add_(x.flatten()), (False, False)),
        (lambda w, x: torch.add(x, 1, out=w), (True, False)),
        (lambda w, x: F.relu(input=w, inplace=True), (True, False)),
        (lambda w, x: torch.relu_(w), (True, False)),
        (lambda w, x: torch.ops.aten.add_.Tensor(x, w), (False, True)),
        (lambda w, x: torch.ops.aten.mul.out(w, x, out=w), (True, False)),
    ],
)
def test_only_what_is_written_to_is_changed(function, expected):
    assert changed(function) == expected


def test_the_changed_value_is_named():
    w, x, call, *_ = fx.Tracer().trace(lambda w, x: x.add_(w)).nodes
    assert changed_in_place(call) is x
    assert changed_in_place(w) is None
