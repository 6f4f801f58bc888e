"""Whether a captured model does what the original does: both run side by side on example inputs."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import CodeType, FrameType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from fxhash.capture.copy_model import copy_model
from fxhash.capture.observer import noticing_draws
from fxhash.capture.own_randomness import OwnRandomness
from fxhash.capture.surroundings import keeps_changing_function
from fxhash.errors import TransformError

# The arguments of one call: a tuple for those by position, a dictionary for those by name; a list of these for several.
ExampleInputs: TypeAlias = tuple[Any, ...] | Mapping[str, Any] | list[tuple[Any, ...] | Mapping[str, Any]]

# The most that outputs may differ by, in parts of their own and of the largest one.
_COARSEST = 0.05


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def read_examples(model: nn.Module, examples: ExampleInputs) -> list[Call]:
    """The calls to check: each example, and each again without one of the optional arguments that it gives.

    Raises:
        TransformError: if `examples` is no tuple, dictionary or list of these.
    """
    given = examples if isinstance(examples, list) else [examples]
    calls = []
    for each in given:
        if isinstance(each, Mapping):
            calls.append(Call((), dict(each)))
        elif isinstance(each, tuple):
            calls.append(Call(each, {}))
        else:
            raise TransformError(
                f"example_inputs: a tuple of forward's arguments, a dictionary of them by name, or a list of such, "
                f"got {type(each).__name__}"
            )
    if not calls:
        raise TransformError("example_inputs is empty: give the arguments of at least one call")
    return calls + [shorter for call in calls for shorter in _without_optional_ones(model, call)]


def omitted_arguments(model: nn.Module, calls: Sequence[Call]) -> dict[str, Any]:
    """The optional arguments of a model that all of some calls omit, with their defaults, where these are plain values.

    Args:
        model: the model.
        calls: the arguments of the calls.
    """
    try:
        signature = inspect.signature(model.forward)
        given = {name for call in calls for name in signature.bind(*call.args, **call.kwargs).arguments}
    except (TypeError, ValueError):
        return {}
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in given and isinstance(parameter.default, (bool, int, float, str, type(None)))
    }


def _without_optional_ones(model: nn.Module, call: Call) -> Iterator[Call]:
    try:
        signature = inspect.signature(model.forward)
        given = signature.bind(*call.args, **call.kwargs).arguments
    except (TypeError, ValueError):
        return
    for name, parameter in signature.parameters.items():
        plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if plain and name in given and parameter.default is not parameter.empty:
            rest = {other: value for other, value in given.items() if other != name}
            if all(signature.parameters[other].kind is not parameter.VAR_POSITIONAL for other in rest):
                more: dict[str, Any] = {}
                for other in [key for key in rest if signature.parameters[key].kind is parameter.VAR_KEYWORD]:
                    more |= rest.pop(other)
                yield Call((), {**rest, **more})


def difference(model: nn.Module, captured: nn.Module, calls: Sequence[Call], modes: Sequence[bool] = ()) -> str | None:
    """How a captured model differs from the original on some calls in a row; None if it doesn't.

    Args:
        model: the original; it is left untouched, as the captured one is: copies run.
        captured: the captured model, with the same weights.
        calls: the arguments.
        modes: training (true) and evaluation; by default both, first that of the original.

    Raises:
        TransformError: if the original itself fails on the first call.
    """
    for training in modes or (model.training, not model.training):
        original, other = copy_model(model).train(training), copy_model(captured).train(training)
        for number, call in enumerate((calls[0], *calls, calls[0])):
            states = random.getstate(), np.random.get_state()
            with noticing_draws() as drawing:
                expected = _run(original, call, number)
            if isinstance(expected, Exception) and number == 0:
                raise TransformError(
                    f"example_inputs don't fit the model, whose forward raises {type(expected).__name__}: {expected}"
                ) from expected
            if drawing or any(map(keeps_changing_function, original.modules())):
                random.setstate(states[0])
                np.random.set_state(states[1])
            found = _compare(_run(other, call, number), expected)
            if found is not None:
                mode = "training" if training else "evaluation"
                return f"{found}, in {mode}, call {number + 1}"
    return None


def code_called(model: nn.Module, calls: Sequence[Call]) -> frozenset[CodeType]:
    """The code of the functions that a model calls on some calls, in both modes.

    Args:
        model: the model; it is left untouched: copies run.
        calls: the arguments.
    """
    found: set[CodeType] = set()

    def on_event(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found.add(frame.f_code)

    before = sys.getprofile()
    for training in (model.training, not model.training):
        running = copy_model(model).train(training)
        for number, call in enumerate(calls):
            sys.setprofile(on_event)
            try:
                _run(running, call, number)
            finally:
                sys.setprofile(before)
    return frozenset(found)


def _run(model: nn.Module, call: Call, seed: int) -> Any:
    """The result of a call, with the inputs afterwards; or the error that it raises."""
    args, kwargs = tree_map(_copied, (call.args, dict(call.kwargs)))
    try:
        with torch.no_grad() if _is_inference(args, kwargs) else torch.enable_grad(), OwnRandomness(seed):
            result = model(*args, **kwargs)
    except Exception as error:
        return error
    return result, args, kwargs


def _is_inference(*values: Any) -> bool:
    return any(isinstance(each, Tensor) and each.is_inference() for each in tree_flatten(values)[0])


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _compare(found: Any, expected: Any) -> str | None:
    if isinstance(expected, Exception) or isinstance(found, Exception):
        if isinstance(found, Exception) and isinstance(expected, Exception):
            return None
        failing, error = ("it", found) if isinstance(found, Exception) else ("only the original", expected)
        return f"{failing} raises {type(error).__name__}: {error}"
    leaves, structure = tree_flatten(found)
    expected_leaves, expected_structure = tree_flatten(expected)
    if structure != expected_structure:
        return "its output is built otherwise"
    for leaf, other in zip(leaves, expected_leaves, strict=True):
        if not _is_close(leaf, other):
            return "its output differs"
    return None


def _is_close(found: Any, expected: Any) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        if isinstance(expected, (bool, int, float, complex, str, bytes, type(None))):
            return type(found) is type(expected) and (found == expected or (found != found and expected != expected))
        if type(found) is not type(expected):
            return False
        return not is_dataclass(expected) or _compare(_fields_of(found), _fields_of(expected)) is None
    if found.shape != expected.shape or found.dtype != expected.dtype or found.layout != expected.layout:
        return False
    if found.layout is not torch.strided or not (found.is_floating_point() or found.is_complex()):
        return torch.equal(found.to_dense(), expected.to_dense()) if found.is_sparse else torch.equal(found, expected)
    if not expected.numel():
        return True
    # A thousand roundings, but for types of 16 bits, of whose values these would leave nothing.
    precision = min(torch.finfo(expected.dtype).eps * 1000, _COARSEST)
    largest = float(expected.detach().abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(found, expected, rtol=precision, atol=precision * largest, equal_nan=True)


def _fields_of(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name, None) for field in fields(value)}


def differing_parts(model: nn.Module, calls: Sequence[Call], capture: Any) -> dict[str, str]:
    """The modules whose capture on their own differs, and none in them does: by path, with how they differ.

    Args:
        model: the original.
        calls: the arguments of the model.
        capture: captures a module.
    """
    seen = _calls_of_modules(model, calls[0])
    found: dict[str, str] = {}
    for path, module in reversed(list(model.named_modules())):
        if path and path in seen and not any(other.startswith(f"{path}.") for other in found):
            try:
                how = difference(module, capture(module), [seen[path]])
            except TransformError:
                continue
            if how is not None:
                found[path] = how
    return found


def _calls_of_modules(model: nn.Module, call: Call) -> dict[str, Call]:
    """The arguments with which each module nested in a model is called first."""
    running = copy_model(model)
    seen: dict[str, Call] = {}
    for path, module in running.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue

        def remember(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            seen.setdefault(path, Call(*tree_map(_copied, (args, kwargs))))

        module.register_forward_pre_hook(remember, with_kwargs=True)
    _run(running, call, 0)
    return seen
