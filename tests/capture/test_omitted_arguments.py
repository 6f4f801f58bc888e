"""Models that branch on optional arguments, captured for calls that omit these as the example inputs do."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import fxhash
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs
from tests.odd.registry import Two


class Optional(Two):
    def forward(self, x, mask=None, scale=1.0, return_hidden=False, *, name=""):
        h = self.a(x)
        if mask is not None:
            h = h * mask
        if scale != 1.0:
            h = h * scale
        if name:
            h = -h
        return (self.b(h), h) if return_hidden else self.b(h)


class OptionalOfTensors(Two):
    def forward(self, x, mask=torch.ones(1), times=None):  # noqa: B008
        return self.b(self.a(x if times is None else x * times))


def transformed(model: nn.Module, *examples) -> torch.fx.GraphModule:
    return fxhash.transform(model, 0.9, seed=0, example_inputs=list(examples))


X = torch.ones(4, 16)


def test_traced_where_all_examples_omit_them():
    gm = transformed(Optional(), (X,))
    assert reasons(gm) == {}
    captured = "traced for calls without mask, scale, return_hidden, name, checked on 1 input"
    assert fxhash.summary(gm).captured == captured
    dense = fxhash.materialize(gm)
    original = Optional()
    original.load_state_dict(dense.state_dict())
    for each in (gm, dense, fxhash.lower_for_deploy(gm)):
        assert_same_outputs(original, each, torch.randn(7, 16))
        # What a caller says is the default.
        assert_same_outputs(original, each, X, None, 1.0, False, name="")


@pytest.mark.parametrize(
    ("name", "value"),
    [("mask", torch.ones(1)), ("mask", False), ("scale", 2.0), ("scale", 1), ("return_hidden", True), ("name", "x")],
)
def test_other_calls_are_refused(name, value):
    gm = transformed(Optional(), (X,))
    for each in (gm, fxhash.materialize(gm), fxhash.lower_for_deploy(gm)):
        with pytest.raises(fxhash.TransformError, match=f"without its argument '{name}'.*example_inputs"):
            each(X, **{name: value})


def test_those_that_an_example_has_are_followed():
    model = Optional()
    with pytest.warns(fxhash.OpaqueWarning):
        gm = transformed(model, (X,), {"x": X, "mask": X})
    original = Optional()
    original.load_state_dict(fxhash.materialize(gm).state_dict())
    for mask in (None, torch.randn(4, 16)):
        assert_same_outputs(original, gm, X, mask)


def test_without_examples_all_are_followed():
    with pytest.warns(fxhash.OpaqueWarning):
        gm = fxhash.transform(Optional(), 0.9, seed=0)
    output, hidden = gm(X, return_hidden=True)
    assert output.shape == hidden.shape


def test_a_model_that_is_traced_anyway_takes_all_arguments():
    class Traced(Two):
        def forward(self, x, scale=1.0):
            return self.b(self.a(x)) * scale

    gm = transformed(Traced(), (X,))
    torch.testing.assert_close(gm(X, 3.0), gm(X) * 3)


def test_a_default_that_is_no_plain_value_is_refused_as_before():
    with pytest.raises(fxhash.TransformError, match="argument 'mask' of forward has a Tensor as its default"):
        transformed(OptionalOfTensors(), (X,))


class _EmptyDefaults(Two):
    def forward(self, x, options={}, steps=[], sizes=()):  # noqa: B006
        h = self.a(x) * options.get("scale", 1.0)
        for step in (*steps, *sizes):
            h = h * step
        return self.b(h)


@pytest.mark.filterwarnings("ignore::fxhash.OpaqueWarning")
def test_defaults_that_hold_nothing():
    gm = fxhash.transform(_EmptyDefaults(), 0.9, seed=0)
    original = _EmptyDefaults()
    original.load_state_dict(fxhash.materialize(gm).state_dict())
    for each in (gm, pickle.loads(pickle.dumps(gm)), fxhash.lower_for_deploy(gm)):
        assert_same_outputs(original, each, X)
        assert_same_outputs(original, each, X, {"scale": 2.0}, [2.0, 3.0], sizes=(1.5,))


def test_a_default_that_holds_something_is_refused():
    class Filled(Two):
        def forward(self, x, options={"scale": 2.0}):  # noqa: B006
            return self.b(self.a(x)) * options["scale"]

    with pytest.raises(fxhash.TransformError, match="argument 'options' of forward has a"):
        fxhash.transform(Filled(), 0.9, seed=0)


def test_stored_and_loaded(tmp_path):
    gm = transformed(Optional(), (X,))
    fxhash.save(gm, tmp_path / "model.safetensors")
    loaded = fxhash.load(tmp_path / "model.safetensors", Optional())
    assert_same_outputs(gm, loaded, X)
    assert len(loaded(X, return_hidden=True)) == 2
