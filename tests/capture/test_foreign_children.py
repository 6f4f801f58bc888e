"""Modules whose forward is not plain Python, and forwards that call modules with parameters of their own choice."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import fxhash
from tests.helpers import assert_same_outputs, generator_of, may_be_opaque

pytestmark = may_be_opaque


def child() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(child())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(child(), torch.randn(4, 32))


def compiled() -> nn.Module:
    return torch.compile(child(), backend="eager")


def compiled_in_place() -> nn.Module:
    module = child()
    module.compile(backend="eager")
    return module


def symbolic() -> nn.Module:
    return torch.fx.symbolic_trace(child())


CHILDREN = {
    "scripted": scripted,
    "traced": traced,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "symbolic": symbolic,
}


class Calls(nn.Module):
    """Calls another module between two layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.inner = inner
        self.last = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)))


class BranchesAround(Calls):
    """Can't be traced, so that the other module is nested in an opaque submodule."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if bool(x.isfinite().all()) else x


class DoublesParameters(nn.Module):
    """Calls a layer with other parameters, made of those that `named_parameters` gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.last = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        doubled = {name: 2 * parameter for name, parameter in self.first.named_parameters()}
        return self.last(functional_call(self.first, doubled, (x,)))


class SwapsParameters(DoublesParameters):
    """Calls a layer with the parameters of another one."""

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.first, dict(self.last.named_parameters()), (x,))


class SwapsAttributes(DoublesParameters):
    """As `SwapsParameters`, by attributes."""

    def forward(self, x: Tensor) -> Tensor:
        swapped = {"weight": self.last.weight, "bias": self.last.bias}
        return self.first(functional_call(self.first, swapped, (x,)))


class SwapsConvolutions(nn.Module):
    """As `SwapsParameters`, and then the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(32, 32, 3, padding=1)
        self.last = nn.Conv1d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(-1).expand(-1, -1, 4)
        return self.first(functional_call(self.first, dict(self.last.named_parameters()), (x,)))


class SwapsOfRecurrent(nn.Module):
    """Calls a layer of another kind with parameters of its own choice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Bilinear(32, 32, 32)
        self.last = nn.Bilinear(32, 32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(functional_call(self.first, dict(self.last.named_parameters()), (x, x)), x)


CALLERS = {kind.__name__: kind for kind in (DoublesParameters, SwapsParameters, SwapsAttributes, SwapsConvolutions)}
CALLERS["SwapsOfRecurrent"] = SwapsOfRecurrent


class Outer(nn.Module):
    """Calls a module that is no part of what is traced in one piece."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.layer = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.layer(x))


def assert_every_form_equals_dense(model: nn.Module, **options: object) -> None:
    """Trace, transformed, materialized, lowered: all compute what the model does with the same weights."""
    x = torch.randn(4, 32)
    model.eval()
    assert_same_outputs(model, fxhash.trace(model).eval(), x)
    gm = fxhash.transform(model, 0.9, seed=0, **options).eval()
    weights = fxhash.materialize(gm).state_dict()
    # What is compiled as a whole is unwrapped, and has the names that it had before.
    model = model._modules.get("_orig_mod", model)
    names = {name for name, _ in model.named_parameters()}
    assert names <= weights.keys() | set(generator_of(gm).plan.unused)
    expected = functional_call(model, {name: weights[name] for name in names & weights.keys()}, (x,))
    for form in (gm, fxhash.materialize(gm), fxhash.lower_for_deploy(gm)):
        with torch.no_grad():
            torch.testing.assert_close(form(x), expected, rtol=1e-4, atol=1e-5)
    for method in ("generate", "cache"):
        with torch.no_grad():
            lowered = fxhash.lower_for_deploy(gm, methods={"weight": method})
            torch.testing.assert_close(lowered(x), expected, rtol=1e-4, atol=1e-5)
    gm.train()
    gm(x).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("around", [Calls, BranchesAround, lambda inner: Outer(BranchesAround(inner))])
@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_that_is_no_plain_module(name, around):
    torch.manual_seed(0)
    if name in ("scripted", "traced"):
        model = around(CHILDREN[name]()).eval()
        x = torch.randn(4, 32)
        gm = fxhash.transform(model, 0.9, seed=0).eval()
        dense = {parameter.fqn: parameter.dense_because for parameter in generator_of(gm).plan.dense}
        assert sum(reason == "inside a script module" for reason in dense.values()) == 4
        for form in (fxhash.materialize(gm), fxhash.lower_for_deploy(gm)):
            assert_same_outputs(gm, form, x)
        gm.train()(x).sum().backward()
        assert all(parameter.grad is not None for parameter in gm.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())
        gm.eval()
        assert_same_outputs(model, fxhash.trace(model).eval(), x)
    else:
        assert_every_form_equals_dense(around(CHILDREN[name]()))


@pytest.mark.parametrize("name", ["scripted", "traced"])
def test_a_script_module_itself_is_refused(name):
    for function in (fxhash.trace, fxhash.transform):
        with pytest.raises(fxhash.TransformError, match=r"is a ScriptModule.* before torch\.jit\.script"):
            function(CHILDREN[name]())


@pytest.mark.parametrize("name", ["compiled", "compiled in place", "symbolic"])
def test_a_compiled_model_itself(name):
    torch.manual_seed(0)
    assert_every_form_equals_dense(CHILDREN[name]())


@pytest.mark.parametrize("around", [lambda inner: inner, Outer], ids=["itself", "nested"])
@pytest.mark.parametrize("name", CALLERS)
def test_functional_call_in_forward(name, around):
    torch.manual_seed(0)
    assert_every_form_equals_dense(around(CALLERS[name]()))


@pytest.mark.parametrize("name", ["SwapsParameters", "SwapsAttributes"])
def test_functional_call_of_a_layer_that_stays_dense(name):
    torch.manual_seed(0)
    assert_every_form_equals_dense(CALLERS[name](), exclude=r"^first\.")
