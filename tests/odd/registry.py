"""What an odd module comes with, and the base that most of them build on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call of a model, and the `with` block that it happens in."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


def call(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs)


class Inputs:
    """Makes the same random tensors each time, of shape (4, 16) if nothing is said.

    Attributes:
        leaves: what was made, in order; each requires a gradient if the inputs do.
    """

    def __init__(self, requires_grad: bool = False) -> None:
        self.requires_grad = requires_grad
        self.leaves: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(7)

    def __call__(self, *shape: int) -> Tensor:
        leaf = torch.randn(*(shape or (4, 16)), generator=self._generator).requires_grad_(self.requires_grad)
        self.leaves.append(leaf)
        # No leaf is passed on, so that a model may change its input in place.
        return leaf * 1


Series = Callable[[Inputs], list[Call]]


@dataclass(frozen=True)
class Odd:
    """An odd module.

    Attributes:
        build: makes it anew; the same under the same seeds.
        calls: the calls that show its oddity, in a row.
        reset: brings what it changes outside of itself, such as a global list, to where it began.
        outside: what it changes outside of itself, for a comparison.
        tolerance: how far rounding may carry its outputs, relative to the largest value.
    """

    build: Callable[[], nn.Module]
    calls: Series
    reset: Callable[[], object]
    outside: Callable[[], object] | None
    tolerance: float = 1e-4


ODD: dict[str, Odd] = {}


def plain(t: Inputs) -> list[Call]:
    return [call(t()), call(t() + 2), call(t() - 2)]


def same_shape_thrice(t: Inputs) -> list[Call]:
    return [call(t()), call(t()), call(t())]


def optional(t: Inputs) -> list[Call]:
    """Without, with, and without a second argument."""
    return [call(t()), call(t(), t()), call(t())]


def given_or_none(t: Inputs) -> list[Call]:
    """A second argument that has no default."""
    return [call(t(), t()), call(t(), None), call(t(), t())]


def odd(
    calls: Series = plain,
    reset: Callable[[], object] = lambda: None,
    outside: Callable[[], object] | None = None,
    tolerance: float = 1e-4,
) -> Callable[[Any], Any]:
    """Register a module class, or a function that builds a model, among the odd ones."""

    def register(build: Any) -> Any:
        assert build.__name__ not in ODD, build.__name__
        ODD[build.__name__] = Odd(build, calls, reset, outside, tolerance)
        return build

    return register


class Two(nn.Module):
    """Two layers, `a` and `b`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)
        self.b = nn.Linear(16, 16)

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x).relu())
