"""A matrix that is never materialized where it is only multiplied by: the factors are applied instead.

For layers whose own code can't be rewritten node by node, such as `nn.MultiheadAttention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from fxhash.graph.recorded import recorded
from fxhash.lowering.functional import factored_linear, is_exporting
from fxhash.lowering.self_attention import attention
from fxhash.smh.arithmetic import generate

aten = torch.ops.aten


class FactoredTensor(Tensor):
    """A matrix `(out, in)` that stands for `generate(left, right, shape)`, or its transpose.

    A linear layer with it applies `right` and then `left`; a split between output channels splits `left`. Any other
    operation gets the matrix, materialized for it alone.
    """

    left: Tensor
    right: Tensor
    matrix_shape: tuple[int, int]
    is_transposed: bool

    @staticmethod
    def __new__(cls, left: Tensor, right: Tensor, shape: Sequence[int], is_transposed: bool = False) -> FactoredTensor:
        """Wrap the factors; the matrix must be row-aligned."""
        out, features = shape
        size, strides = ((features, out), (1, features)) if is_transposed else ((out, features), (features, 1))
        weight = Tensor._make_wrapper_subclass(cls, size, strides=strides, dtype=left.dtype, device=left.device)
        weight.left, weight.right, weight.matrix_shape, weight.is_transposed = (
            left,
            right,
            (out, features),
            is_transposed,
        )
        return weight

    def __repr__(self) -> str:  # type: ignore[override]  # torch declares an argument of its own
        return f"FactoredTensor(shape={tuple(self.shape)}, rank={self.left.shape[1]})"

    def materialize(self) -> Tensor:
        """The matrix itself."""
        weight = generate(self.left, self.right, self.matrix_shape)
        return weight.t() if self.is_transposed else weight

    def transposed(self) -> FactoredTensor:
        """Its transpose, factored too."""
        return FactoredTensor(self.left, self.right, self.matrix_shape, not self.is_transposed)

    def split_channels(self, sizes: Sequence[int]) -> list[FactoredTensor] | None:
        """Pieces of so many output channels each, factored too; None where a piece would start inside a row of `W`."""
        _, features = self.matrix_shape
        cols = self.right.shape[1]
        if self.is_transposed or any(size * features % cols for size in sizes[:-1]):
            return None
        pieces, first = [], 0
        for size in sizes:
            rows = -(-size * features // cols)
            pieces.append(FactoredTensor(self.left[first : first + rows], self.right, (size, features)))
            first += rows
        return pieces

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch's layers leave their fused paths, which need a plain tensor, where an argument has this method.

        An exporter records what is dispatched before this class sees it: there, the factors are applied here.
        """
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() and func in _EXPORTED:
            result = _EXPORTED[func](*args, **kwargs)
            if result is not None:
                return result
            args, kwargs = tree_map_only(FactoredTensor, FactoredTensor.materialize, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it without `cls`
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Apply the factors, or materialize the matrix."""
        factored = _FACTORED.get(func)
        result = factored(*args, **(kwargs or {})) if factored is not None else None
        if result is not None:
            return result
        args, kwargs = tree_map_only(FactoredTensor, FactoredTensor.materialize, (args, kwargs or {}))
        return func(*args, **kwargs)


def _linear(x: Any, weight: Any, bias: Any = None) -> Tensor | None:
    if not isinstance(weight, FactoredTensor) or isinstance(x, FactoredTensor) or weight.is_transposed:
        return None
    return factored_linear(x, weight.left, weight.right, weight.matrix_shape, bias)


def _mm(x: Any, weight: Any) -> Tensor | None:
    return _linear(x, weight.transposed()) if isinstance(weight, FactoredTensor) else None


def _addmm(bias: Any, x: Any, weight: Any, beta: float = 1, alpha: float = 1) -> Tensor | None:
    plain = isinstance(weight, FactoredTensor) and beta == alpha == 1 and bias.dim() == 1
    return _linear(x, weight.transposed(), bias) if plain else None


def _split(weight: FactoredTensor, size: int, dim: int = 0) -> list[FactoredTensor] | None:
    whole, rest = divmod(weight.shape[0], size)
    return _split_with_sizes(weight, [size] * whole + [rest] * bool(rest), dim)


def _split_with_sizes(weight: FactoredTensor, sizes: Sequence[int], dim: int = 0) -> list[FactoredTensor] | None:
    return weight.split_channels(sizes) if dim == 0 else None


def _chunk(weight: FactoredTensor, chunks: int, dim: int = 0) -> list[FactoredTensor] | None:
    return _split(weight, -(-weight.shape[0] // chunks), dim)


_FACTORED: dict[Any, Callable[..., Any]] = {
    aten.t.default: FactoredTensor.transposed,
    aten.linear.default: _linear,
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.chunk.default: _chunk,
}


_EXPORTED: dict[Any, Callable[..., Any]] = {F.linear: _linear, F.multi_head_attention_forward: attention}


@recorded
def as_factored(left: Tensor, right: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight of `shape` `(out, in)` as a factored tensor.

    Under a compiler or tracer, which see through the layer that gets it, it is materialized, but not for an exporter.
    """
    if torch.compiler.is_dynamo_compiling() or torch._C._get_tracing_state() is not None:
        return generate(left, right, shape)
    if type(left) is not torch.nn.Parameter and not is_exporting():
        return generate(left, right, shape)
    return FactoredTensor(left, right, shape)
