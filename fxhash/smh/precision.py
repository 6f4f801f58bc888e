"""The types that products are computed in: autocast is kept out of weights, and float16 is left where it overflows."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The type that autocast computes products in on a kind of device; None where it is switched off."""
    # Older compilers can't follow the question whether a device has autocast at all; those that they compile for have.
    has_autocast = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    if has_autocast and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Keep autocast out: the product has the factors' precision, and layers cast its result as they would a weight."""
    return nullcontext() if autocast_dtype(device_type) is None else torch.autocast(device_type, enabled=False)


def without_autocast(product: Callable[Concatenate[Tensor, Arguments], Result]) -> Callable[..., Result]:
    """Let a function of tensors compute in their own type, also under autocast."""

    @wraps(product)
    def run(first: Tensor, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if autocast_dtype(first.device.type) is None:
            return product(first, *args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return product(first, *args, **kwargs)

    return run


def accumulated_in_float32(
    layer: Callable[Concatenate[Tensor, Arguments], Tensor],
) -> Callable[Concatenate[Tensor, Arguments], Tensor]:
    """Let a layer that applies factors compute in float32 what it would compute in float16, and return float16.

    A dense layer adds up its products in float32 and rounds the result alone. Of a layer of two factors the sums in
    the middle would be rounded too, and overflow: `right` has entries of the size of one, so that its product with an
    input is as many times larger than that input as the square root of the columns, tens to hundreds, while the
    result, after `left`, is of the input's size. No scale of the factors balances that for every input and every
    trained `left`, but float32 has the range; the sums in the middle are few, and most CPUs compute them faster in
    it. bfloat16 has the range of float32.

    Args:
        layer: a function of an input and other tensors.
    """

    @wraps(layer)
    def run(x: Tensor, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        autocast = autocast_dtype(x.device.type)
        # Autocast leaves float64 as it is.
        if (autocast or x.dtype) is not torch.float16 or x.dtype is torch.float64:
            return layer(x, *args, **kwargs)
        wide = [_widened(argument) for argument in args]
        with full_precision(x.device.type):
            result: Tensor = layer(x.float(), *wide, **{name: _widened(value) for name, value in kwargs.items()})  # type: ignore[arg-type]
        return result.to(torch.float16)

    return run


def _widened(argument: object) -> object:
    return argument.float() if isinstance(argument, Tensor) else argument


def largest_entry(left: Tensor, right: Tensor) -> float:
    """A number that no entry of `left @ right` exceeds (Cauchy-Schwarz); infinity if an entry of a factor is.

    Args:
        left: shape `(rows, rank)`.
        right: shape `(at least rank, cols)`.
    """
    right = right[: left.shape[1]]
    return (left.double().norm(dim=1).max() * right.double().norm(dim=0).max()).item()


def balancing_power(kernels: Tensor, left: Tensor, right: Tensor) -> float:
    """What to divide the kernels of a separable convolution by, and its slice `left @ right` to multiply by.

    Split in two, a separable convolution stores what comes between its halves, in float16 maybe. Divided by the sum of
    its absolute entries, at least, a kernel gives nothing that is larger than the largest input, and doesn't overflow.

    Args:
        kernels: shape `(count, positions)`.
        left: the scaled rows of `left`.
        right: the right factor.

    Returns:
        A power of two, by which multiplying is exact; the smallest that is enough, unless the slice would overflow.

    Example:
        >>> balancing_power(torch.tensor([[1.0, -2.0, 4.0]]), torch.ones(2, 1), torch.ones(1, 3))
        8.0
    """
    sums, largest = kernels.double().abs().sum(1).max().item(), largest_entry(left, right)
    if not 0 < sums < math.inf or not 0 < largest < math.inf:
        return 1.0
    room = math.frexp(torch.finfo(left.dtype).max / largest)[1] - 1
    return math.ldexp(1.0, min(math.frexp(sums)[1], max(room, 0)))
