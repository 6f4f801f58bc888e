"""Matrices of attention that are applied by their factors while these are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from fxhash.graph.recorded import is_compiled_or_traced, is_plain_tensor, recorded
from fxhash.lowering.functional import factored_linear
from fxhash.lowering.self_attention import attention
from fxhash.smh.regeneration import generate_weight


class TrainedMatrix(Tensor):
    """A matrix `(out, in)` that stands for `generate(left, right, shape)`, with gradients for its factors.

    Linear layers and attention without weights to return apply the factors. Any other function of torch gets the
    matrix, generated for it alone.
    """

    left: Tensor
    right: Tensor
    matrix_shape: tuple[int, int]

    @staticmethod
    def __new__(cls, left: Tensor, right: Tensor, shape: Sequence[int]) -> TrainedMatrix:
        """Wrap the factors; the matrix must be row-aligned."""
        out, features = shape
        matrix = Tensor._make_wrapper_subclass(
            cls, (out, features), dtype=left.dtype, device=left.device, requires_grad=left.requires_grad
        )
        matrix.left, matrix.right, matrix.matrix_shape = left, right, (out, features)
        return matrix

    def __repr__(self) -> str:  # type: ignore[override]  # torch declares an argument of its own
        return f"TrainedMatrix(shape={self.matrix_shape}, rank={self.left.shape[1]})"

    def generate(self) -> Tensor:
        """The matrix itself."""
        return generate_weight(self.left, self.right, self.matrix_shape)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Apply the factors, or generate the matrix."""
        kwargs = kwargs or {}
        if func in _QUESTIONS or func.__name__ in ("__get__", "__set__"):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        apply = _FACTORED.get(func)
        result = None if apply is None else apply(*args, **kwargs)
        if result is not None:
            return result
        args, kwargs = tree_map_only(TrainedMatrix, TrainedMatrix.generate, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it without `cls`
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse: below autograd the gradients of the factors would be lost."""
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            (matrix,) = args
            return TrainedMatrix(matrix.left.detach(), matrix.right.detach(), matrix.matrix_shape)
        raise AssertionError(f"{func} got a matrix that is not generated")


@recorded
def as_trained(left: Tensor, right: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight of `shape` `(out, in)` as a matrix that is applied by its factors.

    Under a compiler or tracer, and transforms of `torch.func`, it is generated.
    """
    if is_compiled_or_traced() or not is_plain_tensor(left):
        return generate_weight(left, right, shape)
    return TrainedMatrix(left, right, shape)


def _linear(x: Any, weight: Any, bias: Tensor | None = None) -> Tensor | None:
    if not isinstance(weight, TrainedMatrix) or isinstance(x, TrainedMatrix):
        return None
    return factored_linear(x, weight.left, weight.right, weight.matrix_shape, bias)


_QUESTIONS = {Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point, Tensor.__repr__, Tensor.__len__}
_FACTORED: dict[Any, Callable[..., Any]] = {F.linear: _linear, F.multi_head_attention_forward: attention}
