"""Inputs of layers that apply factors, checked: torch's own message would be about the factors, not about the layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fxhash.errors import InputError
from fxhash.graph.recorded import recorded


@recorded
def checked_input(x: Tensor, parameter: str, sizes: Sequence[int], is_embedding: bool = False) -> Tensor:
    """The input of a layer, as it is.

    Args:
        x: the input.
        parameter: fully qualified name of the layer's weight.
        sizes: the weight's shape: `(out, in)` of a linear layer, `(out, in, *kernel)` of a convolution, or
            `(count, size)` of an embedding.
        is_embedding: whether the layer is an embedding.

    Raises:
        InputError: if it does not fit the layer; the message names the layer and what it takes.
    """
    if is_embedding:
        if x.is_floating_point() or x.is_complex():
            raise _error(x, parameter, f"whole numbers from 0 to {sizes[0] - 1:,}", f"of type {x.dtype}")
        return x
    features, spatial = sizes[1], len(sizes) - 2
    if spatial == 0:
        if x.dim() == 0 or x.shape[-1] != features:
            raise _error(x, parameter, f"inputs of shape (..., {features})")
    elif x.dim() not in (spatial + 1, spatial + 2) or x.shape[-spatial - 1] != features:
        names = ", ".join(("depth", "height", "width")[-spatial:]) if spatial > 1 else "length"
        raise _error(x, parameter, f"inputs of shape (batch, {features}, {names})")
    return x


def _error(x: Tensor, parameter: str, expected: str, got: str = "") -> InputError:
    layer = parameter.removesuffix(".weight")
    return InputError(f"layer {layer!r} takes {expected}, got {got or f'shape {tuple(x.shape)}'}")
