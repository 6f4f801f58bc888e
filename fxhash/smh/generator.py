"""The one module that holds the factors and generates every hashed parameter from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxhash.smh.arithmetic import generate, separable
from fxhash.smh.checks import check_module
from fxhash.smh.factors import Factors
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.precision import balancing_power, full_precision, largest_entry


class SMHGenerator(Factors):
    """Generates the weights of a transformed model (Eban et al., CVPR 2020, arXiv 1911.11177).

    Parameter `p` is `scale_p * (left_p @ right[:rank_p]).flatten()[:numel_p].view(shape_p) + shift_p`: a slice of the
    one matrix `W = left @ right` that begins on a row of its own, so that `left_p` belongs to it alone. The slice of a
    separable convolution has an entry for each pair of channels and each of a few spatial kernels, which it multiplies.

    Factors, kernels and scales are trained, the scale by its logarithm: a batch norm after a layer leaves its scale
    without a gradient, and an optimizer that divides by the size of gradients would carry it through zero, where the
    layer's output changes its sign. Shifts are constants: zero, except for a parameter whose mean outweighs its
    standard deviation, such as the all-ones weight of a two-dimensional layer norm, which no multiple of mean-zero
    noise could stand for.

    Attributes:
        plan: what lies where in `W`, and in how many bits the factors are computed with.
        left: the left factor, as one block of shape `(rows_p, rank_p)` a hashed parameter, in the order of the plan.
        more_left: the last column of a block whose first rows use one row of `right` more than the others; shape
            `(more_rows, 1)`. There is one such block at most.
        right: the right factor, shared by all; shape `(rank, cols)`.
        kernels: the spatial kernels of each separable convolution; shape `(count, positions)`.
        log_scales: the logarithm of one trained scale a hashed parameter; shape `(hashed,)`.
        shifts: one constant a hashed parameter; shape `(hashed,)`.
        captured: how the model became a graph, for the summary.
        original: what is kept of the model that was transformed, an `fxhash.original.Original`; None if nothing.
    """

    captured = "given as a graph"
    original: object = None

    def forward(self, name: str | None = None, role: str = "weight") -> Tensor:
        """The weight of one parameter, in its own shape and type, or something else that belongs to it.

        Args:
            name: its fully qualified name in the original model; if omitted, the result is `right`.
            role: `"weight"`; `"left"` for its scaled rows of `left`, `"kernels"` and `"shift"`; `"pointwise"` for the
                weight of the pointwise half of a separable convolution, of shape `(out, in * count, 1, ...)`: its
                slice of `W`, which goes with `depthwise_kernels`.
        """
        if name is None:
            return self.factor_right()
        if role != "weight":
            return self._part(name, role)
        index, parameter = self._hashed[name]
        shift, dtype = self.shifts[index], self._weight_dtype(parameter)
        with full_precision(self.right.device.type):
            shift = shift.to(self.right.dtype)
            if parameter.kernels:
                weight = separable(self.slice(name), self.kernels_of(name), parameter.shape) + shift
            else:
                weight = generate(self.scaled_left(name), self.factor_right(), parameter.shape, shift)
        return weight.to(dtype)

    def _part(self, name: str, role: str) -> Tensor:
        index, parameter = self._hashed[name]
        if role == "left":
            return self.scaled_left(name)
        if role == "kernels":
            return self.kernels_of(name)
        if role == "shift":
            return self.shifts[index].to(self.right.dtype)
        with full_precision(self.right.device.type):
            pointwise = self.slice(name) * self.balance(name)
        return pointwise.to(self._weight_dtype(parameter))

    def _weight_dtype(self, parameter: ParameterPlan) -> torch.dtype:
        # FSDP's mixed precision casts parameters for a call, but no buffers: weights have the cast's type then.
        return self.dtype_of(parameter) if self.right.dtype == self.shifts.dtype else self.right.dtype

    def shift(self, name: str) -> Tensor | None:
        """The constant that is added to the product, of shape `()`; None where it is zero.

        A view of the buffer `shifts`: clone it to store it.
        """
        index, _ = self._hashed[name]
        shift = self.shifts[index]
        return shift if shift.item() else None

    def slice(self, name: str) -> Tensor:
        """The slice of `W` of one parameter, scaled; of its `slice_shape` and the factors' type."""
        return generate(self.scaled_left(name), self.factor_right(), self.parameter(name).slice_shape)

    def balance(self, name: str) -> float:
        """A power of two by which the pointwise half of a separable convolution is larger than its slice of `W`.

        Its depthwise half is smaller by as much.
        """
        return balancing_power(self.kernels_of(name), self.scaled_left(name), self.factor_right())

    def largest_entry(self, name: str, pointwise: bool = False) -> float:
        """A number that no entry of a weight exceeds.

        Args:
            name: its fully qualified name in the original model.
            pointwise: whether to give that of the pointwise half of a separable convolution instead.
        """
        index, parameter = self._hashed[name]
        of_slice = largest_entry(self.scaled_left(name), self.factor_right())
        if pointwise:
            return of_slice * self.balance(name)
        if parameter.kernels:
            of_slice *= self.kernels_of(name).double().abs().sum(0).max().item()
        return of_slice + abs(self.shifts[index].item())

    def depthwise_kernels(self, name: str) -> Tensor:
        """The kernels of a separable convolution's depthwise half; shape `(count, positions)`.

        The pointwise half, which goes with them, is what `forward` returns.
        """
        return self.kernels_of(name) / self.balance(name)

    def extra_repr(self) -> str:
        """Shape of the product, for `repr`."""
        layout = self.plan.layout
        return f"rows={layout.rows}, cols={layout.cols}, rank={layout.rank}, parameters={len(self._hashed)}"


def find_generator(module: object) -> SMHGenerator | None:
    """The generator of a transformed model; None if it is not one.

    Raises:
        TransformError: if `module` is no initialized module.
    """
    check_module(module)
    assert isinstance(module, nn.Module)
    return next((child for child in module.modules() if isinstance(child, SMHGenerator)), None)
