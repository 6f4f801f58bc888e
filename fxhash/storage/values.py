"""Whether the values of a model can be computed with: no NaN, and no infinity but where masks have it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from fxhash.graph.names import original_name
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.plan import CompressionPlan

# The generator's name in a transformed model, which is longer where the model has one of that name.
_OF_THE_GENERATOR = re.compile(r"smh_generator_*\.")
# Elements that are looked at together, so that no more memory is taken than for these.
_PIECE = 2**18


def describe_not_finite(tensors: Mapping[str, Tensor], plan: CompressionPlan) -> str:
    """Which tensor holds NaN, or, if it is trained, infinity; an empty string if none.

    Buffers and frozen parameters may hold infinities, as the masks of attention do.

    Args:
        tensors: the state dict of a transformed model, or part of it.
        plan: its plan.
    """
    trained = {name for parameter in plan.dense if parameter.trainable for name in (parameter.fqn, *parameter.aliases)}
    for name, tensor in tensors.items():
        may_be_infinite = not _OF_THE_GENERATOR.match(name) and original_name(name) not in trained
        for piece in _pieces(tensor):
            if bool(piece.isnan().any()):
                return f"{name!r} holds NaN"
            if not may_be_infinite and bool(piece.isinf().any()):
                return f"{name!r} holds infinity"
    return ""


def describe_infinite_scale(generator: SMHGenerator) -> str:
    """Which parameter has a scale that is infinite although its logarithm is not; an empty string if none has."""
    infinite = generator.log_scales.detach().exp().isinf().tolist()
    return next(
        (
            f"the scale of {each.fqn!r} is infinite"
            for each, is_so in zip(generator.plan.hashed, infinite, strict=True)
            if is_so
        ),
        "",
    )


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The elements, a few at a time, in a type whose values can be tested; nothing of integers."""
    if tensor.is_floating_point() or tensor.is_complex():
        for piece in tensor.detach().flatten().split(_PIECE):
            yield piece if piece.element_size() >= 4 else piece.float()
