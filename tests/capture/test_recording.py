"""A trace gives a recording or a reason, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxhash.capture.exposure import Exposure
from fxhash.capture.reasons import Reason
from fxhash.capture.recording import Recording, record
from fxhash.capture.untraceable import Untraceable
from tests.helpers import run
from tests.models import MODELS, BranchesOnInput, FunctionalDropout


def exposing_all(model):
    return Exposure.of(model, [name for name, _ in model.named_parameters()])


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_as_before(name):
    build, inputs = MODELS[name]
    model, example = build().eval(), inputs()
    expected = run(model, *example)
    state = {key: (tensor, tensor.clone()) for key, tensor in model.state_dict(keep_vars=True).items()}
    classes = [type(module) for module in model.modules()]
    recorded = record(exposing_all(model))
    assert isinstance(recorded, (Recording, Untraceable))
    assert [type(module) for module in model.modules()] == classes
    for key, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is state[key][0]
        assert torch.equal(tensor, state[key][1])
    for before, after in zip(expected, run(model, *example), strict=True):
        assert torch.equal(before, after)


def test_a_recording_names_what_its_graph_calls_and_nothing_else():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = BranchesOnInput()
            self.dropout = FunctionalDropout()

        def forward(self, x):
            x = self.dropout(self.inner(x))
            return x if x.sum() < 1e9 else -x

    model = nn.Sequential(Outer(), nn.Linear(16, 16), FunctionalDropout(), BranchesOnInput())
    recorded = record(exposing_all(model))
    assert list(recorded.opaque) == ["0", "3.inner"]
    assert list(recorded.leaves) == ["2.training_flag"]
    assert recorded.opaque["3.inner"].names == (
        ("positive.weight",),
        ("positive.bias",),
        ("negative.weight",),
        ("negative.bias",),
    )


def test_a_reason_is_one_line():
    class Fails(nn.Linear):
        def forward(self, x):
            raise ValueError("of\n  two lines")

    line = Fails.forward.__code__.co_firstlineno + 1
    where = f"tests/capture/test_recording.py:{line} in forward"
    assert record(exposing_all(Fails(3, 3))) == Untraceable(Reason("ValueError: of two lines", where))
    assert record(exposing_all(nn.LSTM(3, 3))) == Untraceable(Reason("torch.nn.LSTM branches on its inputs or mode"))
