"""Errors that are swallowed, and what a forward asks of the process: gradients, types, autocast, tracing."""

# ruff: noqa: E722
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx._symbolic_trace import is_fx_tracing
from torch.utils.checkpoint import checkpoint

from tests.odd.registry import Call, Inputs, Two, odd


@odd()
class SwallowsFloat(Two):
    def forward(self, x):
        h = self.a(x)
        try:
            n = float(h.max())
        except Exception:
            n = 1.0
        return self.b(h) * n


@odd()
class SwallowsWithBareExcept(Two):
    def forward(self, x):
        h = self.a(x)
        try:
            n = int(h.sum() > 0)
        except:
            n = 7
        return self.b(h) * n


@odd()
class SwallowsBaseException(Two):
    def forward(self, x):
        h = self.a(x)
        try:
            n = h.sum().item()
        except BaseException:
            n = 7
        return self.b(h) * n


@odd()
class SwallowsTypeError(Two):
    def forward(self, x):
        try:
            rows = [self.a(row) for row in x]
        except TypeError:
            return self.b(x)
        return torch.stack(rows)


@odd()
class SwallowsInSuppress(Two):
    def forward(self, x):
        h, n = self.a(x), 7.0
        with contextlib.suppress(Exception):
            n = float(h.mean())
        return self.b(h) * n


@odd()
class SwallowsAllInSuppress(Two):
    def forward(self, x):
        h, n = self.a(x), 7.0
        with contextlib.suppress(BaseException):
            n = float(h.mean())
        return self.b(h) * n


class _Swallow:
    def __enter__(self):
        return self

    def __exit__(self, *error: Any) -> bool:
        return True


@odd()
class SwallowsInOwnBlock(Two):
    def forward(self, x):
        h, n = self.a(x), 7.0
        with _Swallow():
            n = float(h.mean())
        return self.b(h) * n


@odd()
class SwallowsCondition(Two):
    def forward(self, x):
        h = self.a(x)
        try:
            positive = bool(h.sum() > 0)
        except Exception:
            positive = True
        return self.b(h) if positive else h


@odd()
class SwallowsLength(Two):
    def forward(self, x):
        try:
            n = len(x)
        except Exception:
            n = 7
        return self.a(x) * n


@odd()
class SwallowsNumpy(Two):
    def forward(self, x):
        try:
            n = float(np.asarray(x.detach()).mean())
        except Exception:
            n = 7.0
        return self.a(x) * n


@odd()
class SwallowsList(Two):
    def forward(self, x):
        try:
            n = sum(x[0].tolist())
        except Exception:
            n = 7.0
        return self.a(x) * n


@odd()
class SwallowsInChild(Two):
    def __init__(self):
        super().__init__()
        self.child = SwallowsFloat()

    def forward(self, x):
        return self.child(self.a(x))


@odd()
class SwallowsErrorOfChild(Two):
    """The child is refused, and the parent takes the refusal for an answer."""

    def __init__(self):
        super().__init__()
        self.child = _Branches()

    def forward(self, x):
        try:
            return self.child(x)
        except Exception:
            return self.a(x)


class _Branches(Two):
    def forward(self, x):
        return self.a(x) if x.mean() > 0 else self.b(x)


@odd()
class SwallowsAssertion(Two):
    def forward(self, x):
        try:
            assert x.mean() > 0
        except Exception:
            return self.a(x)
        return self.b(x)


@odd()
class FinallyChangesResult(Two):
    def forward(self, x):
        n = 7.0
        try:
            n = 2.0
            n = float(x.mean())
        finally:
            h = self.a(x) * n
        return self.b(h)


@odd()
class RaisesForSomeInputs(Two):
    def forward(self, x):
        if x.mean() < -1:
            raise ValueError("too small")
        return self.a(x)


@odd()
class AssertsOnInputs(Two):
    def forward(self, x):
        assert x.mean() > -1, "too small"
        return self.a(x)


@odd()
class RaisesWithTorchAssert(Two):
    def forward(self, x):
        torch._assert(x.mean() > -1, "too small")
        return self.a(x)


@odd()
class AsksWhetherGradientsAreOn(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if torch.is_grad_enabled() else 3.0)


@odd()
class AsksWhetherInferenceModeIsOn(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if torch.is_inference_mode_enabled() else 3.0)


@odd()
class AsksWhetherValueNeedsGradient(Two):
    def forward(self, x):
        h = self.a(x)
        return h * (2.0 if h.requires_grad else 3.0)


@odd()
class AsksWhetherValueIsLeaf(Two):
    def forward(self, x):
        h = self.a(x)
        return h * (2.0 if h.is_leaf else 3.0)


@odd()
class AsksForGradientFunction(Two):
    def forward(self, x):
        h = self.a(x)
        return h * (2.0 if h.grad_fn is None else 3.0)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _in_other_dtype(t: Inputs) -> list[Call]:
    return [Call((t(),), {}), Call((t(),), {}, lambda: _default_dtype(torch.float64)), Call((t(),), {})]


@odd(_in_other_dtype)
class AsksForDefaultDtype(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if torch.get_default_dtype() is torch.float32 else 3.0)


@odd(_in_other_dtype)
class MakesTensorOfDefaultDtype(Two):
    def forward(self, x):
        return self.a(x) * torch.ones(16)


def _in_autocast(t: Inputs) -> list[Call]:
    return [Call((t(),), {}), Call((t(),), {}, lambda: torch.autocast("cpu", torch.bfloat16)), Call((t(),), {})]


@odd(_in_autocast, tolerance=0.05)
class AsksForAutocast(Two):
    def forward(self, x):
        return self.a(x).float() * (2.0 if torch.is_autocast_enabled("cpu") else 3.0)


@odd(_in_autocast, tolerance=0.05)
class CalledInAutocast(Two):
    """Nothing odd."""


# Rounding to bfloat16 differs.
@odd(tolerance=0.05)
class AutocastBlock(Two):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            h = self.a(x)
        return self.b(h.float())


@odd(_in_autocast, tolerance=0.05)
class AutocastOffBlock(Two):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            h = self.a(x.float())
        return self.b(h)


# Rounding to bfloat16 differs.
@odd(tolerance=0.05)
class AutocastDecorator(Two):
    @torch.autocast("cpu", torch.bfloat16)
    def forward(self, x):
        return self.b(self.a(x))


@odd()
class NoGradBlock(Two):
    def forward(self, x):
        with torch.no_grad():
            h = self.a(x)
        return self.b(h) + x


@odd()
class NoGradBlockOverWeights(Two):
    def forward(self, x):
        with torch.no_grad():
            norm = self.a.weight.norm()
        return self.a(x) / norm


@odd()
class NoGradDecorator(Two):
    @torch.no_grad()
    def frozen(self, x):
        return self.a(x)

    def forward(self, x):
        return self.b(self.frozen(x) + x)


@odd()
class EnableGradBlock(Two):
    def forward(self, x):
        with torch.enable_grad():
            h = self.a(x)
        return self.b(h) * (2.0 if h.requires_grad else 3.0)


@odd()
class GradientsByMode(Two):
    def forward(self, x):
        with torch.set_grad_enabled(bool(self.training)):
            h = self.a(x)
        return self.b(h)


@odd()
class InferenceModeBlock(Two):
    def forward(self, x):
        with torch.inference_mode():
            n = float(self.a(x).mean())
        return self.b(x) * n


@odd()
class GradientSwitchedAndBack(Two):
    def forward(self, x):
        was = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        h = self.a(x)
        torch.set_grad_enabled(was)
        return self.b(h + x)


@odd()
class DetachesValue(Two):
    def forward(self, x):
        return self.b(self.a(x).detach() + x)


@odd()
class GradientInForward(Two):
    def forward(self, x):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.a(y).square().sum(), y)
        return self.b(x + gradient)


@odd()
class Checkpoints(Two):
    def forward(self, x):
        return self.b(checkpoint(self.a, x, use_reentrant=False))


@odd()
class CheckpointsDropout(Two):
    def block(self, x):
        return torch.nn.functional.dropout(self.a(x), 0.5, self.training)

    def forward(self, x):
        return self.b(checkpoint(self.block, x, use_reentrant=False))


@odd()
class SavesTensorsInItsOwnWay(Two):
    def forward(self, x):
        with torch.autograd.graph.saved_tensors_hooks(lambda value: value, lambda value: value):
            return self.a(x)


@contextlib.contextmanager
def _environment(value: str) -> Iterator[None]:
    os.environ["ODD_SCALE"] = value
    try:
        yield
    finally:
        del os.environ["ODD_SCALE"]


def _in_environment(t: Inputs) -> list[Call]:
    return [Call((t(),), {}), Call((t(),), {}, lambda: _environment("3")), Call((t(),), {})]


@odd(_in_environment)
class AsksForEnvironment(Two):
    def forward(self, x):
        return self.a(x) * float(os.environ.get("ODD_SCALE", "2"))


@odd()
class AsksWhetherItIsTraced(Two):
    def forward(self, x):
        return self.a(x) if is_fx_tracing() else self.b(x)


@odd()
class AsksForProxies(Two):
    def forward(self, x):
        return self.a(x) if isinstance(x, fx.Proxy) else self.b(x)


@odd()
class AsksForTypeOfInput(Two):
    def forward(self, x):
        return self.a(x) if "Tensor" in type(x).__name__ else self.b(x)


@odd()
class AsksForTypeOfSelf(Two):
    def forward(self, x):
        return self.a(x) if type(self) is AsksForTypeOfSelf else self.b(x)


@odd()
class AsksWhetherItIsScripted(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if torch.jit.is_scripting() or torch.jit.is_tracing() else 3.0)


_SETTINGS = {"scale": 2.0}


@contextlib.contextmanager
def _scale(value: float) -> Iterator[None]:
    before = _SETTINGS["scale"]
    _SETTINGS["scale"] = value
    try:
        yield
    finally:
        _SETTINGS["scale"] = before


def _in_other_scale(t: Inputs) -> list[Call]:
    return [Call((t(),), {}), Call((t(),), {}, lambda: _scale(3.0)), Call((t(),), {})]


@odd(_in_other_scale)
class ReadsGlobalSetting(Two):
    def forward(self, x):
        return self.a(x) * _SETTINGS["scale"]
