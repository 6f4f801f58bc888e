"""What users give, checked before anything is done with it: numbers, flags, types, devices, modules."""

from __future__ import annotations

import inspect
import math
import numbers
import os
from collections.abc import Collection

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fxhash.errors import PlanError, TransformError, close_matches, shown

# Of elements of a tensor, and so of anything that is counted here.
LARGEST_COUNT = 2**63 - 1

_SHORT_DTYPES = {
    **{"bf16": "bfloat16", "fp16": "float16", "half": "float16", "f16": "float16"},
    **{"fp32": "float32", "float": "float32", "f32": "float32", "fp64": "float64", "double": "float64"},
}


def check_fraction(compress: float) -> None:
    """Raise PlanError unless `compress` is more than 0 and at most 1."""
    if not _is_number(compress) or not 0 < compress <= 1:
        raise PlanError(
            f"compress={shown(compress)} is not a fraction: give trainable parameters after over before, "
            "more than 0 and at most 1, such as compress=0.1"
        )


def check_aspect(aspect: float) -> None:
    """Raise PlanError unless `aspect` is positive and finite."""
    if not _is_number(aspect) or not 0 < aspect < math.inf or not _fits_float(aspect):
        raise PlanError(
            f"aspect={shown(aspect)} is not a positive, finite number: 1 is square, 4 is four times as tall"
        )


def check_seconds(seconds: float) -> None:
    """Raise PlanError unless `seconds` is positive and no more than a minute."""
    if not _is_number(seconds) or not 0 < seconds <= 60:
        raise PlanError(f"seconds={shown(seconds)} is no time to measure for: give more than 0 and at most 60")


def check_flag(name: str, value: object) -> None:
    """Raise PlanError unless a value is True or False."""
    if not isinstance(value, bool):
        raise PlanError(f"{name}={shown(value)} is neither True nor False")


def check_device(device: object) -> torch.device:
    """The device that is named.

    Args:
        device: a `torch.device`, or what one is made of, such as `"cuda:0"`.

    Raises:
        PlanError: if there is no such device.
    """
    try:
        if not isinstance(device, (str, torch.device)):
            raise TypeError("that is neither a string nor a torch.device")
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, ValueError, TypeError, AssertionError, ImportError) as error:
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise PlanError(
            f"device={shown(device)} can't be used: {reason[:200]}. Give a device of this machine, such as 'cpu'"
        ) from error
    return found


def read_dtype(dtype: object, known: Collection[str], purpose: str, argument: str = "dtype") -> torch.dtype:
    """The type that is meant.

    Args:
        dtype: a `torch.dtype`, or its name, such as `"bfloat16"`, `"torch.bfloat16"` or `"bf16"`.
        known: names of the types that are allowed, without the `torch.` prefix.
        purpose: what it is to be a type for, for the message.
        argument: by which it was given, for the message.

    Raises:
        PlanError: for any other type.

    Example:
        >>> read_dtype("bf16", ["bfloat16", "float16"], "type to store factors in")
        torch.bfloat16
    """
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, (str, torch.dtype)) else ""
    name = _SHORT_DTYPES.get(name, name)
    if name not in known:
        names = ", ".join(f"torch.{each}" for each in known)
        raise PlanError(f"{argument}={shown(dtype)} is no {purpose}: give one of {names}{close_matches(name, known)}")
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def check_range(model: nn.Module, dtype: torch.dtype) -> None:
    """Raise PlanError if a finite parameter, or a statistic of a norm, would overflow in a type.

    Other buffers may: a mask of -1e9 has the same effect where that is infinite.
    """
    largest = torch.finfo(dtype).max
    norms = {path for path, module in model.named_modules() if isinstance(module, _NormBase)}
    statistics = [(name, each) for name, each in model.named_buffers() if name.rpartition(".")[0] in norms]
    for kind, named in (("parameter", model.named_parameters()), ("buffer", statistics)):
        for name, tensor in named:
            if tensor.is_floating_point() and torch.finfo(tensor.dtype).max > largest and tensor.numel():
                value = tensor.detach().abs().max().item()
                if largest < value < math.inf:
                    raise PlanError(
                        f"dtype={dtype} can't hold the value {value:.3g} of {kind} {name!r}: its largest is "
                        f"{largest:.3g}. Give a type of a larger range, such as torch.bfloat16"
                    )


def check_module(model: object) -> None:
    """Raise TransformError unless `model` is an initialized `torch.nn.Module`."""
    if not isinstance(model, nn.Module):
        raise TransformError(f"expected a torch.nn.Module or GraphModule, got {_not_a_module(model)}")
    try:
        for module in model.modules():
            module._parameters, module._buffers  # noqa: B018
    except AttributeError as error:
        raise TransformError(
            f"{type(model).__name__} has a module that is not initialized: call super().__init__() in its __init__ "
            f"before anything else ({error})"
        ) from error


def _not_a_module(value: object) -> str:
    """What was given in place of a model, and what to do."""
    if isinstance(value, (str, os.PathLike)):
        return f"{type(value).__name__} {shown(value)}: in fxhash.save the model comes first, in fxhash.load the path"
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"the class {value.__name__}: give a model of that class, {value.__name__}(...)"
    if inspect.isroutine(value):
        name = getattr(value, "__name__", "it")
        name = name if name.isidentifier() else "it"
        return f"{type(value).__name__}: give the model that it builds, {name}(), not what builds it"
    return type(value).__name__


def check_names(argument: str, names: Collection[str], known: Collection[str]) -> set[str]:
    """The names of parameters that are given.

    Raises:
        PlanError: unless it is a collection of names that are known.
    """
    try:
        given = None if isinstance(names, str) else list(names)
    except TypeError:
        given = None
    if given is None:
        raise PlanError(f"{argument}={shown(names)} is no list of the names of parameters")
    for name in given:
        if not isinstance(name, str) or name not in known:
            raise PlanError(f"{argument}: the model has no parameter {shown(name)}{close_matches(name, known)}")
    return set(given)


def is_count(value: object) -> bool:
    """Whether a value is an integer from zero to the largest of 64 bits; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _fits_float(value: float) -> bool:
    try:
        return 0 < float(value) < math.inf
    except OverflowError:
        return False
