"""Whether the values of a model can be computed with: no NaN, and no infinity but where masks have it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from fxhash.graph.names import joined, original_name
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.plan import CompressionPlan

# The generator's name in a transformed model, which is longer where the model has one of that name.
_OF_THE_GENERATOR = re.compile(r"smh_generator_*\.")
# Elements that are looked at together, so that no more memory is taken than for these.
_PIECE = 2**18


def describe_not_finite(
    tensors: Mapping[str, Tensor], plans: Mapping[str, CompressionPlan], trained_otherwise: Collection[str] = ()
) -> str:
    """Which tensor holds NaN, or, if it is trained, infinity; an empty string if none.

    Buffers and frozen parameters may hold infinities, as the masks of attention do.

    Args:
        tensors: the state dict of a transformed model or one that holds some, or part of it.
        plans: the plan of each transformed model, by its path.
        trained_otherwise: names of the trained parameters that are in no plan.
    """
    trained = {
        joined(path, name)
        for path, plan in plans.items()
        for parameter in plan.dense
        if parameter.trainable
        for name in (parameter.fqn, *parameter.aliases)
    } | {*trained_otherwise}
    prefixes = tuple(joined(path, "") for path in plans)
    for name, tensor in tensors.items():
        of_generator = any(
            name.startswith(prefix) and _OF_THE_GENERATOR.match(name, len(prefix)) for prefix in prefixes
        )
        may_be_infinite = not of_generator and original_name(name) not in trained
        for piece in _pieces(tensor):
            if bool(piece.isnan().any()):
                return f"{name!r} holds NaN"
            if not may_be_infinite and bool(piece.isinf().any()):
                return f"{name!r} holds infinity"
    return ""


def describe_not_finite_weight(generator: SMHGenerator) -> str:
    """Which parameter is generated with NaN or infinity, of factors that are finite; an empty string if none.

    A weight whose factors are too small for that is not generated.
    """
    right = _largest(generator.factor_right())
    for parameter, log_scale, shift in zip(generator.plan.hashed, generator.log_scales, generator.shifts, strict=True):
        left = _largest(generator.factor_left(parameter.fqn))
        kernels = _largest(generator.kernels_of(parameter.fqn)) * parameter.kernels if parameter.kernels else 1.0
        # No product or sum on the way is larger.
        bound = parameter.full_rank * left * right * max(log_scale.exp().item(), 1.0) * max(kernels, 1.0)
        types = generator.right.dtype, generator.dtype_of(parameter)
        if not bound + abs(shift.item()) < min(torch.finfo(dtype).max for dtype in types):
            with torch.no_grad():
                weight = generator(parameter.fqn)
            if not all(bool(piece.isfinite().all()) for piece in _pieces(weight)):
                return f"the weight {parameter.fqn!r} is generated with NaN or infinity"
    return ""


def _largest(tensor: Tensor) -> float:
    """The largest absolute value."""
    return max(piece.abs().max().item() for piece in _pieces(tensor))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The elements, a few at a time, in a type whose values can be tested; nothing of integers."""
    if tensor.is_floating_point() or tensor.is_complex():
        for piece in tensor.detach().flatten().split(_PIECE):
            yield piece if piece.element_size() >= 4 else piece.float()
