"""The one module that holds the factors and generates every hashed parameter from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from fxhash.errors import TransformError
from fxhash.parts import original_name
from fxhash.plan import CompressionPlan, ParameterPlan
from fxhash.product import generate_run, split_product, standard_normal_factors


class FactorPool(nn.Module):
    """The factors of `W = left @ right`; called, it gives the run of every hashed parameter at once.

    Attributes:
        left: factor of shape `(rows, rank)`.
        right: factor of shape `(rank, cols)`.
    """

    def __init__(self, left: Tensor, right: Tensor, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.left = nn.Parameter(left)
        self.right = nn.Parameter(right)
        self.sizes = sizes

    def forward(self) -> tuple[Tensor, ...]:
        """One flat tensor a hashed parameter, in the order of the plan."""
        with _full_precision(self.left.device.type):
            return split_product(self.left, self.right, self.sizes)

    def run(self, offset: int, numel: int) -> Tensor:
        """One run alone, as a flat tensor of `numel` elements, from the rows that it touches."""
        with _full_precision(self.left.device.type):
            return generate_run(self.left, self.right, offset, numel)

    def extra_repr(self) -> str:
        """Shape of the product, for `repr`."""
        (rows, rank), cols = self.left.shape, self.right.shape[1]
        return f"rows={rows}, cols={cols}, rank={rank}, parameters={len(self.sizes)}"


class SMHGenerator(nn.Module):
    """Generates the weights of a transformed model (Eban et al., CVPR 2020, arXiv 1911.11177).

    Parameter `p` is `shift_p + scale_p * W.flatten()[offset_p : offset_p + numel_p].view(shape_p)` with
    `W = left @ right`. Factors and scales are trained. Shifts are constants: zero, except for a parameter whose
    mean outweighs its spread, such as the all-ones weight of a two-dimensional layer norm, which no multiple of
    mean-zero noise could stand for.

    In a transformed model, `pool()` computes all runs once a forward and `generator(name, runs)` reads one parameter
    out. In a deployed one, `generator(name)` generates that parameter alone.

    Attributes:
        plan: what lies where in `W`.
        pool: the factors.
        scales: one trained scale a hashed parameter, in the order of the plan; shape `(hashed,)`.
        shifts: one constant a hashed parameter; shape `(hashed,)`.
    """

    scales: nn.Parameter
    shifts: Tensor

    def __init__(self, plan: CompressionPlan, left: Tensor, right: Tensor, scales: Tensor, shifts: Tensor) -> None:
        super().__init__()
        self.plan = plan
        self.pool = FactorPool(left, right, tuple(parameter.numel for parameter in plan.hashed))
        self.scales = nn.Parameter(scales)
        self.register_buffer("shifts", shifts)
        self._hashed = {parameter.fqn: (index, parameter) for index, parameter in enumerate(plan.hashed)}
        # Empty tensors whose only content is a type: `.to()`, `.half()` and `.double()` convert them with the rest,
        # so that a generated weight has the type that the model's own weight would have by now.
        for dtype in sorted({parameter.dtype for parameter in plan.hashed}):
            self.register_buffer(_anchor(dtype), torch.empty(0, dtype=getattr(torch, dtype)), persistent=False)

    @classmethod
    def empty(cls, plan: CompressionPlan, device: torch.device | str = "cpu") -> SMHGenerator:
        """A generator whose factors, scales and shifts are still to be filled; float type as the plan's widest."""
        dtype = factor_dtype(plan)
        layout, hashed = plan.layout, len(plan.hashed)
        return cls(
            plan,
            left=torch.empty(layout.rows, layout.rank, dtype=dtype, device=device),
            right=torch.empty(layout.rank, layout.cols, dtype=dtype, device=device),
            scales=torch.empty(hashed, dtype=dtype, device=device),
            shifts=torch.empty(hashed, dtype=dtype, device=device),
        ).to(device)

    @torch.no_grad()
    def initialise_(self, originals: Mapping[str, Tensor], seed: torch.Generator | None = None) -> None:
        """Fill the factors at random and match the spread of each original parameter, whatever its layer's type.

        Each scale is the ratio of two measured standard deviations, the original's and its run's, so the match is
        exact. Where the original's mean outweighs its spread, the mean becomes the shift.

        Args:
            originals: the original parameters by their fully qualified names.
            seed: source of randomness on the CPU; torch's global one where left out.
        """
        layout = self.plan.layout
        left, right = standard_normal_factors(layout.rows, layout.cols, layout.rank, seed)
        self.pool.left.copy_(left)
        self.pool.right.copy_(right)
        for index, parameter in self._hashed.values():
            original = originals[parameter.fqn]
            if original.is_meta:
                raise TransformError(
                    f"parameter {parameter.fqn!r} is on the meta device while others are not: "
                    "give every parameter values, or put the whole model on the meta device"
                )
            assert parameter.offset is not None
            run = self.pool.run(parameter.offset, parameter.numel)
            std, mean = _std_and_mean(original)
            if not math.isfinite(std) or not math.isfinite(mean):
                raise TransformError(f"parameter {parameter.fqn!r} holds NaN or infinity: its spread can't be matched")
            # A constant has no spread to match: it starts as its shift alone, and the scale learns from zero.
            self.scales[index] = std / run.float().std().item() if std > 0 else 0.0
            self.shifts[index] = mean if abs(mean) > std else 0.0

    def forward(self, name: str, runs: tuple[Tensor, ...] | None = None) -> Tensor:
        """The weight of one parameter, in its own shape and type.

        Args:
            name: its fully qualified name in the original model.
            runs: what `pool()` returned; where left out, its rows alone are generated.
        """
        index, parameter = self._hashed[name]
        assert parameter.offset is not None
        run = self.pool.run(parameter.offset, parameter.numel) if runs is None else runs[index]
        weight = torch.addcmul(self.shifts[index], run.view(parameter.shape), self.scales[index])
        return weight.to(self.dtype_of(parameter))

    def dtype_of(self, parameter: ParameterPlan) -> torch.dtype:
        """The type that a weight has by now: the original's, unless `.to(dtype)` or the like converted the model."""
        return self.get_buffer(_anchor(parameter.dtype)).dtype


def factor_dtype(plan: CompressionPlan) -> torch.dtype:
    """The narrowest type that holds every hashed parameter's type."""
    dtype = getattr(torch, plan.hashed[0].dtype)
    for parameter in plan.hashed[1:]:
        dtype = torch.promote_types(dtype, getattr(torch, parameter.dtype))
    return dtype


def _anchor(dtype: str) -> str:
    return f"type_of_{dtype}"


def _std_and_mean(tensor: Tensor) -> tuple[float, float]:
    """Standard deviation and mean, at least in single precision; the deviation of a constant is exactly zero."""
    values = tensor.detach()
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    smallest, largest = torch.aminmax(values)
    if bool(smallest == largest):
        return 0.0, smallest.item()
    std, mean = torch.std_mean(values)
    return std.item(), mean.item()


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Keep autocast out: the product has the factors' precision, and layers cast its result as they would a weight."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):
            yield
    else:
        yield


def find_generator(module: nn.Module) -> SMHGenerator | None:
    """The generator of a transformed model; None if the model is not transformed."""
    return next((child for child in module.modules() if isinstance(child, SMHGenerator)), None)


def current_plan(gm: nn.Module) -> CompressionPlan:
    """The plan of a transformed model, with the types that its parameters have by now.

    Raises:
        TransformError: if `gm` is not a transformed model.
    """
    generator = find_generator(gm)
    if generator is None:
        raise TransformError(f"this {type(gm).__name__} has no generator: it is not the result of fxhash.transform")
    dense = {original_name(name): parameter for name, parameter in gm.named_parameters(remove_duplicate=False)}
    parameters = []
    for parameter in generator.plan.parameters:
        dtype = generator.dtype_of(parameter) if parameter.hashed else dense[parameter.fqn].dtype
        parameters.append(replace(parameter, dtype=str(dtype).removeprefix("torch.")))
    return replace(generator.plan, parameters=tuple(parameters))
