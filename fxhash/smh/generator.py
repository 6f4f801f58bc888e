"""The one module that holds the factors and generates every hashed parameter from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxhash.errors import PlanError, shown
from fxhash.smh.arithmetic import generate, separable
from fxhash.smh.checks import check_device, check_module
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.plan import CompressionPlan
from fxhash.smh.precision import balancing_power, full_precision, largest_entry


class SMHGenerator(nn.Module):
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
        plan: what lies where in `W`.
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
    log_scales: nn.Parameter
    shifts: Tensor

    def __init__(self, plan: CompressionPlan, device: torch.device | str = "cpu") -> None:
        """Make room for the factors; `fxhash.smh.initialization` or a state dict fills them.

        Raises:
            PlanError: if `plan` is none, or there is no such device.
        """
        super().__init__()
        if not isinstance(plan, CompressionPlan):
            raise PlanError(f"plan={shown(plan)} is no CompressionPlan")
        device = check_device(device)
        self.plan = plan
        self._hashed = {parameter.fqn: (index, parameter) for index, parameter in enumerate(plan.hashed)}

        factor_type = factor_dtype(plan)

        def room(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=factor_type, device=device)

        self.left = nn.ParameterList(
            nn.Parameter(room(plan.rows_of(parameter), parameter.rank or 0)) for parameter in plan.hashed
        )
        self.more_left = nn.ParameterList(
            nn.Parameter(room(parameter.more_rows, 1)) for parameter in plan.hashed if parameter.more_rows
        )
        self._more = {
            parameter.fqn: index
            for index, parameter in enumerate(parameter for parameter in plan.hashed if parameter.more_rows)
        }
        self.right = nn.Parameter(room(plan.layout.rank, plan.layout.cols))
        separable_ones = [parameter for parameter in plan.hashed if parameter.kernels]
        self.kernels = nn.ParameterList(nn.Parameter(room(*parameter.kernels_shape)) for parameter in separable_ones)
        self._kernels = {parameter.fqn: index for index, parameter in enumerate(separable_ones)}
        self.log_scales = nn.Parameter(room(len(self._hashed)))
        self.register_buffer("shifts", room(len(self._hashed)))
        # Empty tensors whose only content is a type: `.to()`, `.half()` and `.double()` convert them with the rest,
        # so that a generated weight has the type that the model's own weight would have by now.
        for dtype in sorted({parameter.dtype for parameter in plan.hashed}):
            anchor = torch.empty(0, dtype=getattr(torch, dtype), device=device)
            self.register_buffer(_anchor(dtype), anchor, persistent=False)

    def forward(self, name: str | None = None, role: str = "weight") -> Tensor:
        """The weight of one parameter, in its own shape and type, or something else that belongs to it.

        Args:
            name: its fully qualified name in the original model; if omitted, the result is `right`.
            role: `"weight"`; `"left"` for its scaled rows of `left`, `"kernels"` and `"shift"`; `"pointwise"` for the
                weight of the pointwise half of a separable convolution, of shape `(out, in * count, 1, ...)`: its
                slice of `W`, which goes with `depthwise_kernels`.
        """
        if name is None:
            return self.right
        if role != "weight":
            return self._part(name, role)
        index, parameter = self._hashed[name]
        shift, dtype = self.shifts[index], self._weight_dtype(parameter)
        with full_precision(self.right.device.type):
            shift = shift.to(self.right.dtype)
            if parameter.kernels:
                weight = separable(self.slice(name), self.kernels_of(name), parameter.shape) + shift
            else:
                weight = generate(self.scaled_left(name), self.right, parameter.shape, shift)
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

    def parameter(self, name: str) -> ParameterPlan:
        """What the plan says of one hashed parameter."""
        _, parameter = self._hashed[name]
        return parameter

    def shift(self, name: str) -> Tensor | None:
        """The constant that is added to the product, of shape `()`; None where it is zero.

        A view of the buffer `shifts`: clone it to store it.
        """
        index, _ = self._hashed[name]
        shift = self.shifts[index]
        return shift if shift.item() else None

    def slice(self, name: str) -> Tensor:
        """The slice of `W` of one parameter, scaled; of its `slice_shape` and the factors' type."""
        return generate(self.scaled_left(name), self.right, self.parameter(name).slice_shape)

    def blocks(self, name: str) -> list[Tensor]:
        """The trained parameters that make up the rows of `left` of one parameter: its block, and its further column.

        Returns:
            One of shape `(rows, rank)`, and one of shape `(more_rows, 1)` where the plan has further rows.
        """
        index, _ = self._hashed[name]
        more = [self.more_left[self._more[name]]] if name in self._more else []
        return [self.left[index], *more]

    def kernels_of(self, name: str) -> Tensor:
        """The spatial kernels of a separable convolution; shape `(count, positions)`."""
        return self.kernels[self._kernels[name]]

    def balance(self, name: str) -> float:
        """A power of two by which the pointwise half of a separable convolution is larger than its slice of `W`.

        Its depthwise half is smaller by as much.
        """
        return balancing_power(self.kernels_of(name), self.scaled_left(name), self.right)

    def largest_entry(self, name: str, pointwise: bool = False) -> float:
        """A number that no entry of a weight exceeds.

        Args:
            name: its fully qualified name in the original model.
            pointwise: whether to give that of the pointwise half of a separable convolution instead.
        """
        index, parameter = self._hashed[name]
        of_slice = largest_entry(self.scaled_left(name), self.right)
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

    def scaled_left(self, name: str) -> Tensor:
        """The rows of `left` of one parameter, times its scale; zero where a row uses fewer rows of `right`."""
        index, parameter = self._hashed[name]
        left: Tensor = self.left[index]
        if parameter.more_rows:
            more = self.more_left[self._more[name]]
            left = torch.cat([left, F.pad(more, (0, 0, 0, left.shape[0] - parameter.more_rows))], dim=1)
        return left * self.log_scales[index].exp()

    def dtype_of(self, parameter: ParameterPlan) -> torch.dtype:
        """The type that a weight has by now: the original's, unless `.to(dtype)` or the like converted the model."""
        # By `getattr`: exporters of torch 2.6 can't follow `get_buffer`.
        anchor: Tensor = getattr(self, _anchor(parameter.dtype))
        return anchor.dtype

    def extra_repr(self) -> str:
        """Shape of the product, for `repr`."""
        layout = self.plan.layout
        return f"rows={layout.rows}, cols={layout.cols}, rank={layout.rank}, parameters={len(self._hashed)}"


def factor_dtype(plan: CompressionPlan) -> torch.dtype:
    """The type that the types of all hashed parameters promote to."""
    dtype = getattr(torch, plan.hashed[0].dtype)
    for parameter in plan.hashed[1:]:
        dtype = torch.promote_types(dtype, getattr(torch, parameter.dtype))
    return dtype


def _anchor(dtype: str) -> str:
    return f"type_of_{dtype}"


def find_generator(module: object) -> SMHGenerator | None:
    """The generator of a transformed model; None if it is not one.

    Raises:
        TransformError: if `module` is no initialized module.
    """
    check_module(module)
    assert isinstance(module, nn.Module)
    return next((child for child in module.modules() if isinstance(child, SMHGenerator)), None)
