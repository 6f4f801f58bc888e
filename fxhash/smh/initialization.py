"""Initialization of a generator: random factors, or those that come nearest to given weights."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.errors import PlanError, TransformError, shown
from fxhash.smh.arithmetic import separable
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.statistics import (
    PrincipalRows,
    StandardDeviation,
    largest_magnitude,
    nearest_pointwise,
    principal_kernels,
    std_and_mean,
)

# Squares of weights are added up in float64, and must not overflow there.
_LARGEST = 1e140


@torch.no_grad()
def initialize_(generator: SMHGenerator, originals: Mapping[str, Tensor], seed: torch.Generator | None = None) -> None:
    """Fill the factors at random and match the standard deviation of each original parameter, whatever its layer.

    Entries of `right` have variance one, and those of a parameter's rows of `left` that of the original: a step of an
    optimizer that doesn't depend on the size of gradients, such as Adam's, then changes these rows as it would have
    changed the weight, and `right`, which all share, more carefully. The scale is the ratio of two measured standard
    deviations, the original's and the generated weight's, so the match is exact. Where the original's mean outweighs
    its standard deviation, the mean becomes the shift.

    Args:
        generator: changed in place; not on the meta device.
        originals: the original parameters by their fully qualified names, at least those that are hashed.
        seed: source of randomness on the CPU; torch's global one if omitted.

    Raises:
        TransformError: if a parameter holds NaN or infinity, or values so large that its generated weights overflow.
    """
    generator.right.copy_(_standard_normal(generator.right, seed))
    for kernels in generator.kernels:
        kernels.copy_(_standard_normal(kernels, seed))
    generator.log_scales.zero_()
    generator.shifts.zero_()
    deviation_of_product = StandardDeviation(generator.right)
    for index, parameter in enumerate(generator.plan.hashed):
        fqn = parameter.fqn
        std, mean = std_and_mean(originals[fqn])
        if not max(std, abs(mean)) < _LARGEST:
            raise _no_deviation(parameter, originals[fqn])
        generator.shifts[index] = mean if abs(mean) > std else 0.0
        for block in generator.blocks(fqn):
            # A constant has a deviation of zero: it is initialized to its shift alone, and its rows learn from zero.
            block.copy_(_standard_normal(block, seed) * std)
        generator.log_scales[index] = _log_scale(generator, parameter, std, mean, deviation_of_product)
        _refuse_overflow(generator, parameter, originals[fqn])


def _log_scale(
    generator: SMHGenerator, parameter: ParameterPlan, std: float, mean: float, of_product: StandardDeviation
) -> float:
    """The logarithm of the scale with which the generated weights have a standard deviation."""
    if std == 0:
        return math.log(abs(mean) or (parameter.channels / parameter.numel) ** 0.5)
    if parameter.kernels:
        generated = _std_of_separable(generator, parameter)
    else:
        generated = of_product(generator.scaled_left(parameter.fqn), parameter.numel)
    # Zero where the deviation is less than the type can hold; no number where the product overflows, which is refused.
    return math.log(std / generated) if 0 < generated < math.inf else 0.0


def _standard_normal(like: Tensor, seed: torch.Generator | None) -> Tensor:
    """Values of mean zero and variance one; shape that of `like`, float32 or that of `like` if wider, on the CPU.

    Drawn there in float32 whatever the model's device and type, so that a seed gives the same numbers everywhere.
    """
    drawn = torch.randn(like.shape, generator=seed, dtype=torch.float32, device="cpu")
    return drawn.to(torch.promote_types(like.dtype, torch.float32))


def _std_of_separable(generator: SMHGenerator, parameter: ParameterPlan) -> float:
    pointwise = generator.slice(parameter.fqn).double()
    return separable(pointwise, generator.kernels_of(parameter.fqn).double(), parameter.shape).std().item()


def _refuse_overflow(generator: SMHGenerator, parameter: ParameterPlan, original: Tensor) -> None:
    """Raise TransformError if the generated weights overflow.

    Only weights near the largest number of their type are generated to look: random ones are not more than some tens of
    standard deviations large, and fitted ones about as large as the original's.
    """
    if largest_magnitude(original) > torch.finfo(original.dtype).max / 64 and not bool(
        generator(parameter.fqn).isfinite().all()
    ):
        raise _too_large(parameter, original)


def _no_deviation(parameter: ParameterPlan, original: Tensor) -> TransformError:
    if bool(original.isfinite().all()):
        return _too_large(parameter, original)
    return TransformError(f"parameter {parameter.fqn!r} holds NaN or infinity: its standard deviation can't be matched")


def _too_large(parameter: ParameterPlan, original: Tensor) -> TransformError:
    return TransformError(
        f"parameter {parameter.fqn!r} has values of about {largest_magnitude(original):.2g}, too large for "
        f"{parameter.dtype}: weights of its standard deviation would overflow. Scale it down, convert the model to a "
        f"type of a larger range, or leave it dense with exclude={re.escape(parameter.fqn)!r}"
    )


@torch.no_grad()
def fit_(generator: SMHGenerator, originals: Mapping[str, Tensor]) -> None:
    """Set the factors to those that come nearest to the original parameters; call `initialize_` before.

    Each parameter counts by its relative error: the squared error of all, each divided by its root mean square about
    its shift, is as small as the rank allows (a truncated SVD). The kernels of a separable convolution are the
    principal ones of its pairs of channels.

    Args:
        generator: changed in place.
        originals: the original parameters by their fully qualified names, at least those that are hashed.

    Raises:
        TransformError: if a parameter holds values so large that its generated weights overflow.
    """
    principal = PrincipalRows(generator.plan.layout.cols, generator.right.device)
    # A constant is its shift alone.
    fitted = [place for place in enumerate(generator.plan.hashed) if generator.left[place[0]].any()]
    for index, parameter in fitted:
        centred = originals[parameter.fqn].to(generator.shifts.device).double() - generator.shifts[index]
        generator.log_scales[index] = centred.square().mean().sqrt().clamp(min=1e-150).log()
        if parameter.kernels:
            generator.kernels_of(parameter.fqn).copy_(principal_kernels(centred, parameter.kernels))
        principal.add(_nearest_rows(generator, index, originals[parameter.fqn]))
    if not fitted:
        return
    right, to_left = principal.factor(generator.plan.layout.rank)
    size = right.square().mean().sqrt()
    generator.right.copy_(right / size)
    for index, parameter in fitted:
        left = _nearest_rows(generator, index, originals[parameter.fqn]) @ to_left * size
        write_rows_(generator, index, left * generator.log_scales[index].double().exp())
        _refuse_overflow(generator, parameter, originals[parameter.fqn])


def write_rows_(generator: SMHGenerator, index: int, rows: Tensor) -> None:
    """Set a parameter's rows of `left` and its scale, such that their product is `rows`.

    As in random initialization, entries of `left` are about as large as the original's.

    Args:
        generator: changed in place.
        index: of the parameter among the hashed ones.
        rows: shape `(rows, at least rank)`.
    """
    parameter = generator.plan.hashed[index]
    block, *more = generator.blocks(parameter.fqn)
    rank = block.shape[1]
    scale = rank**-0.5
    generator.log_scales[index] = math.log(scale)
    block.copy_(rows[:, :rank] / scale)
    for column in more:
        column.copy_(rows[: parameter.more_rows, rank : rank + 1] / scale)


def _nearest_rows(generator: SMHGenerator, index: int, original: Tensor) -> Tensor:
    """The rows of `W`, of any rank, from which a parameter nearest to its original values is generated.

    Args:
        generator: its shifts, scales and kernels count.
        index: of the parameter among the hashed ones.
        original: the original values.

    Returns:
        Shape `(rows, cols)`, with zeros after the last entry.
    """
    parameter, cols = generator.plan.hashed[index], generator.plan.layout.cols
    original = original.to(generator.shifts.device).double()
    values = (original - generator.shifts[index]) / generator.log_scales[index].double().exp()
    if parameter.kernels:
        values = nearest_pointwise(values, generator.kernels_of(parameter.fqn))
    unused = generator.plan.rows_of(parameter) * cols - parameter.slice_numel
    return F.pad(values.flatten(), (0, unused)).view(-1, cols)


def random_generator(seed: int | torch.Generator | None) -> torch.Generator | None:
    """The random numbers of a seed, or the given ones; None for torch's global ones.

    Raises:
        PlanError: if it is neither a whole number of 64 bits nor a generator on the CPU.
    """
    if seed is None:
        return None
    if isinstance(seed, torch.Generator):
        if seed.device.type != "cpu":
            raise PlanError(f"seed is a torch.Generator on {seed.device}: give one on the CPU, or a whole number")
        return seed
    try:
        return torch.Generator().manual_seed(operator.index(seed))
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(
            f"seed={shown(seed)} is neither a whole number of 64 bits nor a torch.Generator on the CPU"
        ) from error
