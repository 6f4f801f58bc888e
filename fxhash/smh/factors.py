"""The factors of a transformed model: what is trained, and stored in files."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxhash.errors import PlanError, shown
from fxhash.smh.checks import check_device
from fxhash.smh.factor_bits import FactorBits, Role, fake_quantized
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.plan import CompressionPlan


class Factors(nn.Module):
    """The trained parameters that all generated weights are made of, as they are and as they are computed with.

    They are computed with as they are, unless the plan has `factor_bits`: then with the nearest values of so many bits.
    The attributes are those of `fxhash.SMHGenerator`.
    """

    log_scales: nn.Parameter
    shifts: Tensor
    # Of what `round_` has rounded.
    _rounded_to: FactorBits | None = None

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

    def parameter(self, name: str) -> ParameterPlan:
        """What the plan says of one hashed parameter."""
        _, parameter = self._hashed[name]
        return parameter

    def blocks(self, name: str) -> list[Tensor]:
        """The trained parameters that make up the rows of `left` of one parameter: its block, and its further column.

        Returns:
            One of shape `(rows, rank)`, and one of shape `(more_rows, 1)` where the plan has further rows.
        """
        index, _ = self._hashed[name]
        more = [self.more_left[self._more[name]]] if name in self._more else []
        return [self.left[index], *more]

    def factor_right(self) -> Tensor:
        """`right` as it is computed with; shape `(rank, cols)`."""
        return self._in_bits(self.right, self.plan.factor_bits, "right")

    def factor_left(self, name: str) -> Tensor:
        """The rows of `left` of one parameter as they are computed with; zero where one uses fewer rows of `right`."""
        return self._in_bits(self._left_rows(name), self.plan.factor_bits, "left")

    def _left_rows(self, name: str) -> Tensor:
        index, parameter = self._hashed[name]
        left: Tensor = self.left[index]
        if parameter.more_rows:
            more = self.more_left[self._more[name]]
            left = torch.cat([left, F.pad(more, (0, 0, 0, left.shape[0] - parameter.more_rows))], dim=1)
        return left

    def scaled_left(self, name: str) -> Tensor:
        """The rows of `left` of one parameter, times its scale; zero where a row uses fewer rows of `right`."""
        return self.scaled(name, self.factor_left(name))

    def scaled(self, name: str, rows: Tensor) -> Tensor:
        """What is given, times the scale of one parameter."""
        index, _ = self._hashed[name]
        return rows * self.log_scales[index].exp()

    def kernels_of(self, name: str) -> Tensor:
        """The spatial kernels of a separable convolution as they are computed with; shape `(count, positions)`."""
        return self._in_bits(self.kernels[self._kernels[name]], self.plan.factor_bits, "kernels")

    def dtype_of(self, parameter: ParameterPlan) -> torch.dtype:
        """The type that a weight has by now: the original's, unless `.to(dtype)` or the like converted the model."""
        # By `getattr`: exporters of torch 2.6 can't follow `get_buffer`.
        anchor: Tensor = getattr(self, _anchor(parameter.dtype))
        return anchor.dtype

    @torch.no_grad()
    def round_(self, bits: FactorBits | None = None) -> None:
        """Set the factors to what they are computed with, in place, and compute with them as they are from now on.

        Args:
            bits: what to round to where they are computed with as they are; nothing if omitted.
        """
        bits = self.plan.factor_bits or bits
        for parameter in self.plan.hashed:
            block, *more = self.blocks(parameter.fqn)
            left = self._in_bits(self._left_rows(parameter.fqn), bits, "left")
            block.copy_(left[:, : block.shape[1]])
            for column in more:
                column.copy_(left[: column.shape[0], block.shape[1] :])
        self.right.copy_(self._in_bits(self.right, bits, "right"))
        for kernels in self.kernels:
            kernels.copy_(self._in_bits(kernels, bits, "kernels"))
        self._rounded_to, self.plan = bits or self._rounded_to, replace(self.plan, factor_bits=None)

    @property
    def rounded_to(self) -> FactorBits | None:
        """What the factors were trained as or rounded to; None if they are as they are."""
        return self.plan.factor_bits or self._rounded_to

    def bits_to_store(self) -> FactorBits:
        """As which integers of 8 bits at most the factors are stored: those they were trained as, or else by row."""
        return self.rounded_to or FactorBits(8)

    @staticmethod
    def _in_bits(rows: Tensor, bits: FactorBits | None, role: Role) -> Tensor:
        return rows if bits is None else fake_quantized(rows, bits.of(role))


def factor_dtype(plan: CompressionPlan) -> torch.dtype:
    """The type that the types of all hashed parameters promote to."""
    dtype = getattr(torch, plan.hashed[0].dtype)
    for parameter in plan.hashed[1:]:
        dtype = torch.promote_types(dtype, getattr(torch, parameter.dtype))
    return dtype


def _anchor(dtype: str) -> str:
    return f"type_of_{dtype}"
