"""Inputs for a model, as `--input` describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxhash.cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = ("float32", "int64", "bool")


def read_sizes(text: str) -> list[int]:
    """The sizes in text such as `1x3x224x224`.

    Raises:
        UsageError: for anything else.
    """
    sizes = text.split("x")
    if not all(size.isascii() and size.isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(f"--input {text!r}: give sizes with an x between them, such as 1x3x224x224")
    return [int(size) for size in sizes]


def read_input(text: str) -> Tensor:
    """An input of sizes such as `1x3x224x224`, or `1x128:int64` for another type than float32.

    Floating-point values are random; all others are zero, which is a token of any vocabulary.

    Raises:
        UsageError: for another form or type.
    """
    import torch

    shape, colon, kind = text.partition(":")
    if colon and kind not in _TYPES:
        raise UsageError(f"--input {text!r}: {kind!r} is no type of an input: give one of {', '.join(_TYPES)}")
    sizes = read_sizes(shape)
    if kind in ("", "float32"):
        return torch.rand(sizes)
    return torch.zeros(sizes, dtype=getattr(torch, kind))
