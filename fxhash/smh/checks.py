"""What users give, checked before anything is done with it: numbers, flags, types, devices, modules."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection

import torch
from torch import nn

from fxhash.errors import PlanError, TransformError, close_matches, shown

# Of elements of a tensor, and so of anything that is counted here.
LARGEST_COUNT = 2**63 - 1


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


def check_dtype(dtype: object, known: tuple[str, ...]) -> None:
    """Raise PlanError unless `dtype` is one of the types of these names, without the `torch.` prefix."""
    if not isinstance(dtype, torch.dtype) or str(dtype).removeprefix("torch.") not in known:
        names = ", ".join(f"torch.{name}" for name in known)
        raise PlanError(f"dtype={shown(dtype)} is no type that a model can have: give one of {names}")


def check_range(model: nn.Module, dtype: torch.dtype) -> None:
    """Raise PlanError if a finite parameter would overflow in a type."""
    largest = torch.finfo(dtype).max
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and torch.finfo(parameter.dtype).max > largest and parameter.numel():
            value = parameter.detach().abs().max().item()
            if largest < value < math.inf:
                raise PlanError(
                    f"dtype={dtype} can't hold the value {value:.3g} of parameter {name!r}: its largest is "
                    f"{largest:.3g}. Give a type of a larger range, such as torch.bfloat16"
                )


def check_module(model: object) -> None:
    """Raise TransformError unless `model` is an initialized `torch.nn.Module`."""
    if not isinstance(model, nn.Module):
        raise TransformError(f"expected a torch.nn.Module or GraphModule, got {type(model).__name__}")
    try:
        for module in model.modules():
            module._parameters, module._buffers  # noqa: B018
    except AttributeError as error:
        raise TransformError(
            f"{type(model).__name__} has a module that is not initialized: call super().__init__() in its __init__ "
            f"before anything else ({error})"
        ) from error


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
