"""Models that branch on sizes, captured for sizes with which they branch as they do on the example inputs."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import fxhash
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs
from tests.odd.registry import Two

X = torch.ones(4, 16)


class _ByRows(Two):
    def forward(self, x):
        h = self.a(x)
        if h.shape[0] > 2:
            h = h + h.flip(0)
        return self.b(h)


class _ByDimensions(Two):
    def forward(self, x):
        h = x.unsqueeze(0) if x.dim() == 2 else x
        h = self.b(self.a(h))
        return h[0] if x.dim() == 2 else h


class _LoopsOverSizes(Two):
    def forward(self, x):
        h = self.a(x)
        for size in h.shape[:-1]:
            h = h / size
        return self.b(h)


class _Halved(nn.Module):
    def forward(self, x):
        return (x / 2 if x.shape[0] > 1 else None), x


class _AsksWhetherThereIsOne(Two):
    def __init__(self):
        super().__init__()
        self.halved = _Halved()

    def forward(self, x):
        halved, h = self.halved(self.a(x))
        return self.b(h if halved is None else halved)


class _ByValue(Two):
    def forward(self, x):
        h = self.a(x)
        return self.b(h if x.sum() > 0 else -h)


class _ByNumberOfPositiveOnes(Two):
    def forward(self, x):
        h = self.a(x)
        positive = x[x > 0]
        return self.b(h if positive.shape[0] > 60 else -h)


class _ByMean(Two):
    """The size of nothing, but a number of a value."""

    def forward(self, x):
        h = self.a(x)
        return self.b(h if int(x.mean()) > 0 else -h)


def transformed(model: nn.Module, *examples: tuple) -> torch.fx.GraphModule:
    return fxhash.transform(model, 0.9, seed=0, example_inputs=list(examples or [(X,)]))


def original_of(gm, kind):
    model = kind()
    model.load_state_dict(fxhash.materialize(gm).state_dict())
    return model


@pytest.mark.parametrize("kind", [_ByRows, _ByDimensions, _LoopsOverSizes, _AsksWhetherThereIsOne])
def test_traced_for_such_sizes(kind):
    gm = transformed(kind())
    assert reasons(gm) == {}
    assert fxhash.summary(gm).captured == "traced for sizes as in example_inputs, checked on 1 input"
    original = original_of(gm, kind)
    for each in (gm, fxhash.lower_for_deploy(gm), pickle.loads(pickle.dumps(gm))):
        assert_same_outputs(original, each, X)
        assert_same_outputs(original, each, torch.randn(7, 16))


@pytest.mark.parametrize(
    ("kind", "other", "what"),
    [
        (_ByRows, torch.ones(1, 16), r"other sizes: .*test_example_values.py:\d+ in forward branches on sizes"),
        (_ByDimensions, torch.ones(3, 4, 16), r"test_example_values.py:\d+ in forward branches on sizes"),
        (_LoopsOverSizes, torch.ones(3, 4, 16), "traced with 1 values where there are 2 now"),
        (_AsksWhetherThereIsOne, torch.ones(1, 16), "is not None, but now it is: give transform example_inputs"),
    ],
)
def test_calls_that_branch_otherwise_are_refused(kind, other, what):
    gm = transformed(kind())
    kind()(other)
    for each in (gm, fxhash.materialize(gm), fxhash.lower_for_deploy(gm)):
        with pytest.raises(fxhash.TransformError, match=what):
            each(other)


@pytest.mark.parametrize("kind", [_ByValue, _ByNumberOfPositiveOnes, _ByMean])
@pytest.mark.filterwarnings("ignore::fxhash.OpaqueWarning")
def test_what_values_decide_stays_opaque(kind):
    gm = transformed(kind())
    assert list(reasons(gm)) == ["opaque_part"]
    original = original_of(gm, kind)
    for x in (X, -X, torch.randn(4, 16)):
        assert_same_outputs(original, gm, x)


@pytest.mark.filterwarnings("ignore::fxhash.OpaqueWarning")
def test_examples_that_branch_otherwise_leave_it_opaque():
    gm = transformed(_ByRows(), (X,), (torch.ones(1, 16),))
    original = original_of(gm, _ByRows)
    for x in (X, torch.ones(1, 16), torch.ones(2, 16)):
        assert_same_outputs(original, gm, x)


@pytest.mark.filterwarnings("ignore::fxhash.OpaqueWarning")
def test_without_examples_all_sizes_are_followed():
    gm = fxhash.transform(_ByRows(), 0.9, seed=0)
    assert_same_outputs(original_of(gm, _ByRows), gm, torch.ones(1, 16))


class _LayerBySize(Two):
    def forward(self, x):
        h = self.a(x)
        return self.b(h) if h.shape[0] == 1 else h


@pytest.mark.filterwarnings("ignore::fxhash.OpaqueWarning")
@pytest.mark.parametrize("kind", [_LayerBySize, _ByRows])
def test_stored_and_loaded(kind, tmp_path):
    gm = transformed(kind())
    fxhash.save(gm, tmp_path / "model.safetensors")
    loaded = fxhash.load(tmp_path / "model.safetensors", kind())
    assert_same_outputs(gm, loaded, X)
    assert loaded(X[:1]).shape == (1, 16)


def test_the_example_leaves_random_numbers_alone():
    class Drops(_ByRows):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    torch.manual_seed(3)
    expected = torch.rand(2)
    model = Drops()
    torch.manual_seed(3)
    transformed(model)
    assert torch.equal(torch.rand(2), expected)
