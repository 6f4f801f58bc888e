"""What asks for the type or the device of a weight, and that no weight is generated for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxhash
from fxhash.capture.opaque import OpaqueModule
from tests.helpers import assert_same_outputs


class AsksForTypes(nn.Module):
    """As many encoders do; of a weight that nothing else reads, too."""

    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(500, 64), nn.Linear(64, 300)
        self.convolution = nn.Conv1d(64, 64, 3, padding=1)
        self.unread = nn.Linear(64, 64, bias=False)

    def forward(self, x):
        positions = torch.arange(x.shape[1], device=self.table.weight.device)
        y = (self.table(positions) + x).to(self.unread.weight.dtype)
        y = self.convolution(y.transpose(1, 2).to(self.convolution.weight.dtype)).transpose(1, 2)
        return self.linear(y.to(self.linear.weight.dtype))


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"weights": "int8"}], ids=str)
def test_no_weight_is_generated_to_be_asked(options):
    gm = fxhash.transform(AsksForTypes(), 0.1, seed=0).eval()
    x = torch.randn(2, 5, 64, dtype=options.get("dtype"))
    lowered = fxhash.lower_for_deploy(gm, **options)
    assert not [use for use in lowered.smh_factors.plan.uses if use.node.startswith("getattr")]
    outputs = lowered(x)
    assert outputs.dtype == x.dtype
    reference = fxhash.lower_for_deploy(gm, **options, methods={"table.weight": "cache"})
    torch.testing.assert_close(outputs, reference(x), rtol=1e-2, atol=1e-2)
    if not options:
        assert_same_outputs(gm, lowered, x)
        assert_same_outputs(gm.double(), lowered.double(), x.double())


def test_types_of_their_own_and_training():
    model = AsksForTypes()
    model.table.double()
    gm = fxhash.transform(model, 0.1, seed=0).eval()
    x = torch.randn(2, 5, 64)
    for form in (fxhash.lower_for_deploy, fxhash.lower_for_training):
        assert_same_outputs(gm, form(gm), x)
    fast = fxhash.lower_for_training(gm.train())
    assert not [node for node in fast.graph.nodes if node.target is getattr and "generate" in node.args[0].name]


class AsksItsFirstParameter(nn.Module):
    """As code does that makes a state, or has properties `device` and `dtype`."""

    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(500, 64), nn.Linear(64, 300)

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def forward(self, x):
        first = next(self.parameters())
        positions = torch.arange(x.shape[1], device=first.device)
        state = first.new_zeros(x.shape[0], 1, 64) + torch.ones(64).to(self.linear.weight)
        return self.linear(self.table(positions) + x.to(self.dtype) + state)


@pytest.mark.parametrize("form", [lambda gm: gm, fxhash.lower_for_deploy, fxhash.lower_for_training])
def test_the_first_parameter_is_asked_at_each_call(form):
    gm = fxhash.transform(AsksItsFirstParameter(), 0.1, seed=0).eval()
    x = torch.randn(2, 5, 64)
    assert_same_outputs(gm, form(gm), x)
    assert_same_outputs(gm.double(), form(gm).double(), x.double())
    assert form(gm).bfloat16()(x).dtype == torch.bfloat16


def test_no_weight_is_generated_for_its_first_parameter():
    lowered = fxhash.lower_for_deploy(fxhash.transform(AsksItsFirstParameter(), 0.1, seed=0))
    assert {str(use.method) for use in lowered.smh_factors.plan.uses} == {"factored"}


DTYPES = {
    "the first of floating point": lambda model: next(p.dtype for p in model.parameters() if p.is_floating_point()),
    "by a function": lambda model: next(p.dtype for p in model.parameters() if torch.is_floating_point(p)),
    "by its type": lambda model: next(p.dtype for _, p in model.named_parameters() if p.dtype.is_floating_point),
    "not complex": lambda model: next(p.dtype for p in model.parameters() if not p.is_complex()),
    "not of a complex type": lambda model: next(p.dtype for p in model.parameters() if not p.dtype.is_complex),
    "from a list": lambda model: [p.dtype for p in model.parameters()][-1],
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_whether_a_parameter_is_of_floating_point_is_known(dtype):
    class Asks(AsksItsFirstParameter):
        def forward(self, x):
            return self.linear(x.to(DTYPES[dtype](self)))

    gm = fxhash.transform(Asks(), 0.1, seed=0)
    x = torch.randn(2, 64)
    assert not [module for module in gm.modules() if isinstance(module, OpaqueModule)]
    for form in (fxhash.materialize, fxhash.lower_for_deploy, fxhash.lower_for_training):
        assert_same_outputs(gm, form(gm), x)
    assert_same_outputs(gm.double(), fxhash.lower_for_deploy(gm), x)


class AddsUpItsParameters(AsksItsFirstParameter):
    def forward(self, x):
        return self.linear(x) + sum(each.square().sum() for name, each in self.named_parameters() if "table" in name)


def test_parameters_that_are_gone_through_are_generated():
    gm = fxhash.transform(AddsUpItsParameters(), 0.1, seed=0)
    x = torch.randn(2, 64)
    for form in (fxhash.materialize, fxhash.lower_for_deploy, fxhash.lower_for_training):
        assert_same_outputs(gm, form(gm), x)
