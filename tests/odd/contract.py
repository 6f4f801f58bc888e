"""The contract of `tests/test_faithfulness.py`, for one model."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import fxhash
from fxhash.graph.names import original_name
from tests.helpers import generator_of
from tests.odd.ownership import originals_reached
from tests.odd.registry import Call, Inputs, Odd

# What `transform` is told, by the name of the way.
WAYS = ("traced", "checked", "modules")

Step = tuple[str, Any]


class Refused(Exception):  # noqa: N818
    """An `FxhashError` at any point: the other right outcome."""


def built(odd: Odd) -> nn.Module:
    """The odd module, the same each time."""
    _seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return odd.build()


def transformed(odd: Odd, model: nn.Module, way: str) -> fx.GraphModule:
    """`model`, transformed in one of the ways, at 0.9 of its size or at the smallest that is possible if that is more.

    Raises:
        Refused: if fxhash refuses it.
    """
    options: dict[str, Any] = {"seed": 0}
    if way == "checked":
        examples = max((each.args for each in odd.calls(Inputs()) if not each.kwargs), key=len)
        options["example_inputs"] = examples
    elif way == "modules":
        options["capture"] = "modules"
    odd.reset()
    _seed(0)
    try:
        try:
            return fxhash.transform(model, 0.9, **options)
        except fxhash.BudgetError as error:
            return fxhash.transform(model, min(error.smallest_compress, 1.0), **options)
    except fxhash.FxhashError as error:
        raise Refused from error


def trained(gm: fx.GraphModule) -> fx.GraphModule:
    """The same, after an optimizer has moved every parameter, so that what is shared by mistake shows."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.05)
    return gm


def materialized(gm: fx.GraphModule) -> dict[str, Any]:
    """The weights of a transformed model.

    Raises:
        Refused: if fxhash can't materialize them.
    """
    try:
        return fxhash.materialize(gm).state_dict()
    except fxhash.FxhashError as error:
        raise Refused from error


def carrying(weights: dict[str, Any], odd: Odd) -> nn.Module:
    """The original, built anew, with the weights of the transformed model."""
    model = built(odd)
    # What the original doesn't use is missing, and the second names of tied weights.
    _, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, f"materialized weights that the original doesn't have: {unexpected}"
    loaded = model.state_dict()
    for name, value in weights.items():
        if isinstance(value, Tensor):
            assert_same(loaded[name], value, f"{name}, which the original ties to another weight")
    return model


def assert_faithful(odd: Odd, way: str) -> None:
    """A model, transformed in one way, does what the original does with the same weights; or fxhash refuses it.

    The transformed model is called in train mode with gradients, then in eval mode without, then in train mode again;
    the lowered one in inference mode. All that differs is named in one error.

    Args:
        odd: the model.
        way: one of `WAYS`.
    """
    model = built(odd)
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    problems: list[str] = []

    def check(what: Callable[..., None], *args: Any) -> None:
        try:
            what(*args)
        except Refused:
            pass
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")

    def check_all() -> None:
        gm = transformed(odd, model, way)
        check(assert_owned, gm, model)
        trained(gm)
        weights = materialized(gm)
        # Lowered first: calls may change the model's state.
        check(_compare_lowered, odd, gm, carrying(weights, odd))
        check(_compare_transformed, odd, gm, carrying(weights, odd))

    check(check_all)
    check(_assert_untouched, before)
    check(assert_original_is_as_built, odd, model)
    assert not problems, "\n".join(problems)


def _assert_untouched(before: dict[str, tuple[nn.Parameter, Tensor]]) -> None:
    for name, (parameter, value) in before.items():
        assert parameter.grad is None, f"{name} of the original has a gradient"
        assert torch.equal(parameter, value), f"{name} of the original has changed"


def assert_original_is_as_built(odd: Odd, model: nn.Module) -> None:
    """The original does what a new one does: nothing that was done with its copies has changed it."""
    fresh = built(odd)
    assert [*dict(model.named_modules())] == [*dict(fresh.named_modules())]
    assert [module.training for module in model.modules()] == [module.training for module in fresh.modules()]
    for candidate in (fresh, model):
        odd.reset()
        outcome = _run(candidate, odd.calls(Inputs()), torch.no_grad)
        if candidate is fresh:
            expected = outcome
    _assert_same_steps(odd, outcome, expected, "the original after transform")


def _compare_transformed(odd: Odd, gm: fx.GraphModule, reference: nn.Module) -> None:
    outcomes = []
    for candidate in (reference, gm):
        odd.reset()
        inputs = Inputs(requires_grad=True)
        steps = _run(candidate, odd.calls(inputs), torch.enable_grad)
        gradients = _backward(steps, inputs)
        candidate.eval()
        steps += _run(candidate, odd.calls(Inputs()), torch.no_grad)
        candidate.train()
        steps += _run(candidate, odd.calls(Inputs())[:1], torch.enable_grad)
        outcomes.append((steps, gradients))
    (expected, expected_gradients), (steps, gradients) = outcomes
    _assert_same_steps(odd, steps, expected, "the transformed model")
    if any(kind == "raised" for kind, _ in expected):
        return
    if expected_gradients is not None:
        assert gradients is not None, "backward fails of the transformed model, not of the original"
        assert_same(gradients, expected_gradients, "the gradient of an input", odd.tolerance)
        _assert_gradients_arrive(gm, reference)
    _assert_same_buffers(gm, reference)


def _compare_lowered(odd: Odd, gm: fx.GraphModule, reference: nn.Module) -> None:
    try:
        lowered = fxhash.lower_for_deploy(gm)
    except fxhash.FxhashError as error:
        raise Refused from error
    outcomes = []
    for candidate in (reference.eval(), lowered):
        odd.reset()
        outcomes.append(_run(candidate, odd.calls(Inputs()), torch.inference_mode))
    _assert_same_steps(odd, outcomes[1], outcomes[0], "the lowered model")
    if not any(kind == "raised" for kind, _ in outcomes[0]):
        _assert_same_buffers(lowered, reference)


def _run(model: nn.Module, calls: list[Call], mode: Callable[[], AbstractContextManager[Any]]) -> list[Step]:
    """What each call in a row gives: its output and what became of its inputs, or the error that it raises.

    Raises:
        Refused: if a call raises an `FxhashError`.
    """
    steps: list[Step] = []
    for seed, each in enumerate(calls):
        _seed(seed)
        try:
            with mode(), each.context():
                output = model(*each.args, **each.kwargs)
        except fxhash.FxhashError as error:
            raise Refused from error
        except Exception as error:
            steps.append(("raised", error))
            break
        # Cloned, as of now: a later call may change what this one returned. Gradients flow through the clones.
        steps.append(("returned", _cloned((output, each.args, each.kwargs))))
    return steps


def _backward(steps: list[Step], inputs: Inputs) -> list[Tensor | None] | None:
    """The gradients of all inputs, after a backward of the sum of all outputs; None if it fails."""
    outputs = [tensor for kind, value in steps if kind == "returned" for tensor in _tensors(value[0])]
    terms = [tensor.float().square().mean() for tensor in outputs if tensor.requires_grad]
    try:
        torch.stack(terms).sum().backward()
    except RuntimeError:
        return None
    return [leaf.grad for leaf in inputs.leaves]


def _assert_same_steps(odd: Odd, steps: list[Step], expected: list[Step], who: str) -> None:
    for number, ((kind, value), (expected_kind, expected_value)) in enumerate(zip(steps, expected, strict=False), 1):
        where = f"{who}, call {number}"
        if expected_kind == "raised":
            assert kind == "raised", f"{where}: nothing raised, but the original raises {expected_value!r}"
            return
        if kind == "raised":
            raise AssertionError(f"{where}: raises {value!r}, but the original doesn't") from value
        assert_same(value, expected_value, where, odd.tolerance)
    assert len(steps) == len(expected), f"{who}: other errors than the original"


def _assert_gradients_arrive(gm: fx.GraphModule, reference: nn.Module) -> None:
    generator = generator_of(gm)
    with_gradient = {
        name for name, parameter in reference.named_parameters(remove_duplicate=False) if parameter.grad is not None
    }
    for parameter, left in zip(generator.plan.hashed, generator.left, strict=True):
        if with_gradient & {parameter.fqn, *parameter.aliases}:
            assert left.grad is not None, f"no gradient reaches {parameter.fqn}"


def _assert_same_buffers(gm: nn.Module, reference: nn.Module) -> None:
    """Those that both have: lowering may fold some into weights."""
    values = {original_name(name): value for name, value in gm.named_buffers()}
    for name, buffer in reference.named_buffers():
        if name in values:
            assert_same(values[name], buffer, f"buffer {name}")


def assert_same(value: Any, expected: Any, where: str, rtol: float = 1e-4) -> None:
    """Two values are equal up to rounding: tensors, numbers, strings, and containers of them."""
    if isinstance(expected, Tensor):
        assert isinstance(value, Tensor), f"{where}: {value!r}, no tensor"
        assert value.shape == expected.shape, where
        assert value.dtype == expected.dtype, where
        value, expected = value.detach(), expected.detach()
        if not expected.dtype.is_floating_point:
            assert torch.equal(value, expected), where
            return
        tolerance = max(rtol, 4 * torch.finfo(expected.dtype).eps)
        largest = expected.abs().nan_to_num(0, 0, 0).max().item() if expected.numel() else 0.0
        torch.testing.assert_close(
            value,
            expected,
            rtol=tolerance,
            atol=tolerance * largest + 1e-6,
            equal_nan=True,
            msg=lambda m: f"{where}: {m}",
        )
    elif dataclasses.is_dataclass(expected):
        assert type(value) is type(expected), where
        assert_same(vars(value), vars(expected), where, rtol)
    elif isinstance(expected, dict):
        assert type(value) is type(expected), where
        assert list(value) == list(expected), where
        assert_same(list(value.values()), list(expected.values()), where, rtol)
    elif isinstance(expected, (list, tuple)):
        assert type(value) is type(expected), f"{where}: a {type(value).__name__}, no {type(expected).__name__}"
        assert len(value) == len(expected), where
        for each, other in zip(value, expected, strict=True):
            assert_same(each, other, where, rtol)
    elif isinstance(expected, float):
        assert isinstance(value, float), where
        assert abs(value - expected) <= rtol * abs(expected) + 1e-5, f"{where}: {value} instead of {expected}"
    elif expected is None or isinstance(expected, (bool, int, str)):
        assert type(value) is type(expected), where
        assert value == expected, f"{where}: {value} instead of {expected}"
    else:
        assert type(value) is type(expected), where
        assert_same(dict(getattr(value, "__dict__", {})), dict(getattr(expected, "__dict__", {})), where, rtol)


def _cloned(value: Any) -> Any:
    """A copy of containers and tensors, through which gradients flow."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_cloned, value))
    if type(value) in (list, tuple):
        return type(value)(map(_cloned, value))
    if type(value) is dict:
        return {key: _cloned(each) for key, each in value.items()}
    return value


def _tensors(output: Any) -> list[Tensor]:
    leaves = tree_leaves(vars(output) if dataclasses.is_dataclass(output) else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _seed(seed: int) -> None:
    # Not `torch.manual_seed`, which writes down the whole stack for devices that are not in use yet.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def assert_owned(gm: fx.GraphModule, model: nn.Module) -> None:
    """No parameter of the original, nor its memory, can be reached from the transformed model."""
    reached = originals_reached(gm, model)
    assert not reached, "\n".join(reached)
