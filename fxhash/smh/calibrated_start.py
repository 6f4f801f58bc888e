"""A start from a model's own weights that is as near as can be to its layers' outputs on calibration inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxhash.smh.calibration import MomentStore
from fxhash.smh.factored_weight import FactoredWeight, conjugate_gradients
from fxhash.smh.fitting import ROUNDS, fit, total_loss, whitened_start
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.importance import by_gradients
from fxhash.smh.initialization import fit_, write_rows_
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.plan import CompressionPlan
from fxhash.smh.planning import highest_rank, with_ranks
from fxhash.smh.ranks import choose_ranks, rank_gains
from fxhash.smh.weight_target import WeightTarget, damped, pointwise_target, solve_right

# Ranks are chosen up to so many times the rows that `right` has by the sizes of parameters, unless the system of an
# output channel gets too large.
_HIGHER, _LARGEST_SYSTEM = 4, 8192


@torch.no_grad()
def fit_to_inputs_(
    generator: SMHGenerator,
    originals: Mapping[str, Tensor],
    seen: MomentStore,
    rounds: int = ROUNDS,
    gradients: Mapping[str, float] | None = None,
) -> CalibratedFit:
    """Set the factors to those whose layers' outputs come nearest to the original ones; call `initialize_` before.

    Each layer counts by its relative error: the mean square of what its outputs are off by on the calibration inputs,
    over that of its outputs, times its number of output channels; or by what its outputs are off by, times how much
    the outputs of the model change with them. A parameter whose inputs were not seen, such as an embedding, counts by
    the error of its values. `left` has a closed form given `right`; both are found in turn.

    Args:
        generator: changed in place.
        originals: the original parameters by their fully qualified names, at least those that are hashed.
        seen: the moments of the inputs of linear layers and convolutions.
        rounds: of alternating least squares.
        gradients: the squared gradients of the model's outputs by those of each layer; None for relative errors.

    Returns:
        What can be fitted further.

    Raises:
        TransformError: if a parameter holds values so large that its generated weights overflow.
    """
    fit_(generator, originals)
    # A constant is its shift alone.
    fitted = [
        _Fitted.of(generator, parameter, originals[parameter.fqn], seen)
        for index, parameter in enumerate(generator.plan.hashed)
        if generator.left[index].any()
    ]
    if not fitted:
        return CalibratedFit([], generator.right, 0.0)
    if gradients is not None:
        by_values = [gradients[each.parameter.fqn] * each.unit**2 for each in fitted]
        for each, target in zip(fitted, by_gradients([each.target for each in fitted], by_values), strict=True):
            each.aim_(target)
    weights = [each.weight for each in fitted]

    def improve_kernels(right: Tensor) -> None:
        for each in fitted:
            if each.kernels is not None:
                each.improve_kernels_(right)

    nearest = generator.right.to(weights[0].left.dtype)
    right = fit(weights, [whitened_start(weights, len(nearest)), nearest], rounds, improve_kernels)
    size = math.sqrt(right.shape[1])
    generator.right.copy_(right * size)
    for each in fitted:
        each.write_(generator, size)
    return CalibratedFit(fitted, right, total_loss(weights, right))


@torch.no_grad()
def with_fitted_ranks(plan: CompressionPlan, fit: CalibratedFit) -> CompressionPlan:
    """A plan of as many parameters, whose ranks are those that remove most of the loss of a fit.

    Args:
        plan: what was fitted.
        fit: of this plan.
    """
    if not fit.fitted:
        return plan
    layout, weights = plan.layout, [each.weight for each in fit.fitted]
    affordable = _LARGEST_SYSTEM // max(weight.segments for weight in weights)
    most = max(min(_HIGHER * layout.rank, layout.cols, layout.rows, affordable), layout.rank)
    right = whitened_start(weights, most)
    found = {each.parameter.fqn: rank_gains(each.weight, right).tolist() for each in fit.fitted}
    gains = [found.get(each.fqn, [0.0] * most)[: highest_rank(plan, each)] for each in plan.hashed]
    rows = [plan.rows_of(parameter) for parameter in plan.hashed]
    return with_ranks(plan, choose_ranks(gains, rows, layout.cols, plan.factor_parameters, layout.rank))


@dataclass
class CalibratedFit:
    """What was fitted, and to what.

    Attributes:
        fitted: each parameter.
        right: with orthonormal rows.
        loss: the sum of what all count by.
    """

    fitted: list[_Fitted]
    right: Tensor
    loss: float

    @torch.no_grad()
    def follow_(self, generator: SMHGenerator, name: str, products: Tensor, squares: Tensor, share: float) -> None:
        """Fit the rows of `left` of one layer again, to the inputs that it has in the compressed model.

        Its outputs come near to what the original weight makes of inputs between the compressed model's, `y`, and the
        original's, `x`: `(1 - share) y + share x`.

        Args:
            generator: of the fit; changed in place.
            name: of the weight.
            products: sums of `x y^T`; shape `(length, length)`.
            squares: sums of `y y^T`.
            share: how much of the errors of the layers before is to be made up for.
        """
        for each in self.fitted:
            if each.parameter.fqn == name:
                gram = damped(squares.unsqueeze(0), 1e-2)[0].double()
                cross = gram + share * (products.double() - squares.double())
                values = each.target.values
                wanted = solve_right(values.double() @ cross, gram).to(values)
                each.aim_(replace(each.target, values=wanted, gram=gram.unsqueeze(0).to(values)))
                each.weight.solve_left_(self.right)
                each.write_(generator, math.sqrt(self.right.shape[1]))


@dataclass
class _Fitted:
    """A parameter that is fitted.

    Attributes:
        parameter: what the plan says of it.
        target: the weight as the layer has it.
        unit: what the weight was divided by, so that its mean square is one.
        weight: its slice of `W`.
        kernels: those of a separable convolution.
    """

    parameter: ParameterPlan
    target: WeightTarget
    unit: float
    weight: FactoredWeight
    kernels: Tensor | None

    @classmethod
    def of(cls, generator: SMHGenerator, parameter: ParameterPlan, original: Tensor, seen: MomentStore) -> _Fitted:
        """A parameter with its shift, and kernels, of the generator."""
        shift = generator.shift(parameter.fqn)
        centred = original.detach().to(generator.right.device).double() - (0.0 if shift is None else shift.double())
        unit = centred.square().mean().sqrt().clamp(min=1e-150).item()
        values = (centred / unit).to(torch.promote_types(generator.right.dtype, torch.float32))
        values = values.reshape(original.shape[0] if original.dim() > 1 else 1, -1)
        gram = damped(seen[parameter.fqn].gram).to(values) if parameter.fqn in seen else None
        target = WeightTarget(values, gram).relative()
        kernels = generator.kernels_of(parameter.fqn).to(values) if parameter.kernels else None
        in_slice = target if kernels is None else pointwise_target(target, kernels)
        weight = FactoredWeight(in_slice, generator.plan.layout.cols, parameter.rank or 0, parameter.more_rows)
        return cls(parameter, target, unit, weight, kernels)

    def aim_(self, target: WeightTarget) -> None:
        """Set another target, and what the slice of `W` has to come near to with the present kernels."""
        self.target = target
        self.weight.target = target if self.kernels is None else pointwise_target(target, self.kernels)

    def improve_kernels_(self, right: Tensor) -> None:
        """Set the kernels to the best with the present slice of `W`, and what the slice has to come near to."""
        assert self.kernels is not None
        count, positions = self.kernels.shape
        slices = self.weight.of_right(right).unflatten(1, (-1, count))

        def of_kernels(kernels: Tensor) -> Tensor:
            return (slices @ kernels).flatten(1)

        def to_kernels(weighed: Tensor) -> Tensor:
            return torch.einsum("oik,oip->kp", slices, weighed.unflatten(1, (-1, positions)))

        missing = to_kernels(self.target.weighed(self.target.values - of_kernels(self.kernels)))
        self.kernels = self.kernels + conjugate_gradients(
            lambda step: to_kernels(self.target.weighed(of_kernels(step))), missing, count * positions
        )
        self.aim_(self.target)

    def write_(self, generator: SMHGenerator, size: float) -> None:
        """Write what was fitted to the generator, whose `right` is larger by `size`."""
        write_rows_(
            generator, generator.plan.hashed.index(self.parameter), self.weight.left.double() * (self.unit / size)
        )
        if self.kernels is not None:
            generator.kernels_of(self.parameter.fqn).copy_(self.kernels)
