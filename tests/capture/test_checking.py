"""What was captured runs beside the original: what differs becomes opaque, and the summary says what was checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fxhash
from fxhash.capture.checking import difference, read_examples
from tests.capture.reasons import reasons
from tests.helpers import may_be_opaque
from tests.models import MODELS, FunctionalDropout

pytestmark = may_be_opaque

x = torch.ones(4, 16)


TICKS = iter(range(1000))


def tick():
    return next(TICKS)


class ReadsClock(nn.Module):
    """No capture can do the same twice: every call, of whatever copy, gives something else."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.clock = tick

    def forward(self, x):
        return self.linear(x) * self.clock()


class Scales(nn.Module):
    """Two optional arguments."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x, scale=None, shift=None):
        x = self.linear(x)
        x = x if scale is None else x * scale
        return x if shift is None else x + shift


def test_the_summary_says_whether_it_was_checked(capsys):
    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout())
    fxhash.summary(fxhash.transform(model, 0.9), verbose=True)
    assert "captured: traced, not checked\n" in capsys.readouterr().out
    fxhash.summary(fxhash.transform(model, 0.9, example_inputs=(x,)), verbose=True)
    assert "captured: traced, checked on 1 input\n" in capsys.readouterr().out
    fxhash.summary(fxhash.transform(model, 0.9, example_inputs=[(x,), {"input": x}]), verbose=True)
    assert "captured: traced, checked on 2 inputs\n" in capsys.readouterr().out


def test_each_optional_argument_is_left_out_in_turn():
    calls = read_examples(Scales(), (x, 2.0, 3.0))
    assert [sorted(call.kwargs) for call in calls] == [[], ["shift", "x"], ["scale", "x"]]


@pytest.mark.parametrize("name", ["FunctionalDropout", "StochasticDepth", "CountsCalls", "BranchesOnInput", "LSTM"])
def test_no_difference_where_there_is_none(name):
    build, inputs = MODELS[name]
    model = build()
    assert difference(model, fxhash.trace(model), read_examples(model, inputs())) is None


def test_a_difference_is_found_in_either_mode():
    model = FunctionalDropout()
    frozen = torch.fx.symbolic_trace(model.eval())
    found = difference(model, frozen, read_examples(model, (x,)))
    assert found is not None
    assert "in training" in found


def test_a_part_that_differs_becomes_opaque(monkeypatch):
    """A trace that goes wrong: as if nothing were known of values that are none."""
    monkeypatch.setattr("fxhash.capture.observer.hazards_of", lambda code: ())
    model = nn.Sequential(nn.Linear(16, 16), _MaybeNone(), nn.Linear(16, 16))
    assert not reasons(fxhash.trace(model))
    gm = fxhash.transform(model, 0.9, example_inputs=(x,))
    (found,) = reasons(gm).items()
    assert found[0] == "1.opaque_part"
    assert "its capture differs on the example inputs: its output differs" in found[1]


class _Leaf(nn.Module):
    def forward(self, x):
        return None


class _MaybeNone(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.leaf = _Leaf()

    def forward(self, x):
        return self.linear(x) * (2.0 if self.leaf(x) is None else 3.0)


def test_what_differs_even_as_a_whole_is_refused():
    with pytest.raises(fxhash.TransformError, match="even where that is called as a whole"):
        fxhash.transform(ReadsClock(), 0.9, example_inputs=(x,))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (x, "a tuple of forward's arguments, a dictionary of them by name, or a list of such, got Tensor"),
        ([], "example_inputs is empty"),
        ((torch.ones(4, 3),), "example_inputs don't fit the model, whose forward raises RuntimeError"),
    ],
)
def test_examples_that_do_not_fit(examples, message):
    with pytest.raises(fxhash.TransformError, match=message):
        fxhash.transform(nn.Linear(16, 16), 0.9, example_inputs=examples)


def test_checking_leaves_the_model_and_random_numbers_as_they_are():
    model = MODELS["CountsCalls"][0]()
    example = MODELS["CountsCalls"][1]()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    fxhash.transform(model, 0.9, seed=0, example_inputs=example)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_modules_are_captured_without_a_trace():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    gm = fxhash.transform(model, 0.9, seed=0, capture="modules")
    assert reasons(gm) == {"opaque_part": "capture='modules' was asked for"}
    with pytest.raises(fxhash.TransformError, match="capture='else' is unknown: give one of 'trace', 'modules'"):
        fxhash.transform(model, 0.9, capture="else")


def test_a_file_loads_however_the_model_is_captured(tmp_path):
    model = MODELS["BranchesOnInput"][0]()
    example = MODELS["BranchesOnInput"][1]()
    for written in ("trace", "modules"):
        gm = fxhash.transform(model, 0.9, seed=0, capture=written).eval()
        fxhash.save(gm, tmp_path / "model.safetensors")
        for read in ("trace", "modules"):
            loaded = fxhash.load(tmp_path / "model.safetensors", model, capture=read).eval()
            assert torch.equal(loaded(*example), gm(*example))


class Returns(nn.Module):
    """A constant, of the type of the input."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, x):
        return torch.tensor(self.values, dtype=x.dtype) if isinstance(self.values, list) else self.values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_other_outputs_differ_in_any_type(dtype):
    given = read_examples(Returns([1.0]), (x.to(dtype),))
    values = [1.0, 2.0, 3.0, 4.0]
    rounded = torch.tensor(values, dtype=dtype) * (1 + torch.finfo(dtype).eps)
    assert difference(Returns(values), Returns(rounded.tolist()), given) is None
    for others in ([0.0] * 4, [1.0, 2.0, 3.0, 3.5], [torch.nan, 2.0, 3.0, 4.0]):
        assert difference(Returns(values), Returns(others), given) == "its output differs, in training, call 1"


@dataclass
class Output:
    logits: torch.Tensor


def test_outputs_in_a_dataclass_are_compared():
    given = read_examples(Returns(1.0), (x,))
    one, same, other = (Returns(Output(torch.tensor(value))) for value in (1.0, 1.0, 2.0))
    assert difference(one, same, given) is None
    assert difference(one, other, given) == "its output differs, in training, call 1"


def test_no_number_is_equal_to_no_number_alone():
    given = read_examples(Returns(1.0), (x,))
    assert difference(Returns(math.nan), Returns(math.nan), given) is None
    for value, other in ((1.0, math.nan), (math.nan, 1.0)):
        assert difference(Returns(value), Returns(other), given) == "its output differs, in training, call 1"
