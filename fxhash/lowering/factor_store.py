"""The module of a lowered model that holds the factors: all that its plan says is stored.

`left` and `right` may be stored as integers of 8 bits. Then they are in floating point for each reader alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxhash.errors import InputError
from fxhash.graph.names import free_name
from fxhash.lowering.batch_norm import FoundNorm, foldable_norm
from fxhash.lowering.functional import scale_channels
from fxhash.lowering.plan import LoweringPlan, WeightUse
from fxhash.smh.checks import check_module
from fxhash.smh.factor_bits import FactorBits, Role, dequantize, quantize
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.plan import CompressionPlan

# Key of a tensor that is of the type and on the device of the factors, whatever it holds.
LIKE = ", like"
# Roles of rows that are trained and scaled.
_ROWS: tuple[Role, ...] = ("left", "kernels")


@dataclass(frozen=True)
class StoredRows:
    """Rows of `left`, of `right` or of kernels that a lowered model holds.

    Attributes:
        rows: what is stored, as integers if the model is lowered so.
        scale: what the trained rows were multiplied by; shape `(rows, 1)` or `(1, 1)`. One for integers.
        role: what they are rows of.
    """

    rows: Tensor
    scale: Tensor
    role: Role


class FactorStore(nn.Module):
    """The factors of a lowered model: `right`, and what is stored for each use of a weight.

    Called without arguments it returns `right`, called with a key the tensor that is stored under it. What is stored as
    integers is widened for each call.

    Args:
        compression: the plan of the transformed model.
        plan: how each weight is computed.
        captured: how the model became a graph, for the summary.
        right: the shared right factor; shape `(rank, cols)`.
        tensors: what is stored, by `WeightUse.key`; rows of `left` as integers if the plan has `factor_bits`.
        scales: what rows of `left` and kernels among them were multiplied by, as of `StoredRows`.
        rounded_to: which bits the factors were rounded to before that; None if to none.

    Attributes:
        original: that of the transformed model's generator.
    """

    original: object = None
    rounded_to: FactorBits | None = None
    _scales: Mapping[str, Tensor] = MappingProxyType({})

    def __init__(
        self,
        compression: CompressionPlan,
        plan: LoweringPlan,
        captured: str,
        right: Tensor,
        tensors: dict[str, Tensor],
        scales: Mapping[str, Tensor] = MappingProxyType({}),
        rounded_to: FactorBits | None = None,
    ) -> None:
        super().__init__()
        self.compression = compression
        self.plan = plan
        self.captured = captured
        self.rounded_to = rounded_to
        self._scales = dict(scales)
        self._attributes: dict[str, str] = {}
        # Where each call of a graph finds the type and device of the factors.
        self._attributes[LIKE] = "right" if plan.factor_bits is None else "right_steps"
        if plan.factor_bits is not None:
            right, steps = in_eight_bits(right, plan.factor_bits.of("right"))
            self.right_steps = nn.Parameter(steps, requires_grad=False)
        self.right = nn.Parameter(right, requires_grad=False)
        for key, tensor in tensors.items():
            self._attributes[key] = attribute = free_name(self, re.sub(r"\W+", "_", key))
            self.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The type that factors are computed with in."""
        like: Tensor = getattr(self, self._attributes[LIKE])
        return like.dtype

    def forward(self, key: str | None = None, rows: int | None = None, is_widened: bool = True) -> Tensor:
        """`right`, or the tensor under `key`.

        Args:
            key: of `WeightUse.key`, or `LIKE` for any tensor of the type and on the device of the factors.
            rows: how many rows of `right` are needed, if not all. Of what is stored in floating point it may be all.
            is_widened: whether integers are to be widened.

        Raises:
            InputError: if the lowered model is called to be trained.
        """
        # Without a search for each attribute: this is called for every tensor of every layer.
        parameters: dict[str, Any] = self._parameters
        if self.training or parameters[self._attributes[LIKE]].requires_grad:
            raise InputError(
                "this model is lowered, which is for inference alone: train the transformed model that it was made of, "
                "and lower it again; to call this one, .eval() and .requires_grad_(False) it"
            )
        stored: Tensor = parameters["right" if key is None else self._attributes[key]]
        bits = self.plan.factor_bits
        if bits is None or not is_widened:
            return stored
        if key is None:
            return _as_parameter(dequantize(stored[:rows], parameters["right_steps"][:rows], bits.of("right")))
        steps = self._attributes.get(steps_key(key))
        return stored if steps is None else _as_parameter(dequantize(stored, parameters[steps], bits))

    def stored_rows(self) -> Iterator[StoredRows]:
        """The factors and kernels that are stored; cached weights are neither."""
        one = torch.ones(1, 1)
        yield StoredRows(self.right, one, "right")
        for use in self.plan.uses:
            for role in _ROWS:
                if use.stores(role):
                    key = use.key(role)
                    rows: Tensor = getattr(self, self._attributes[key])
                    yield StoredRows(rows, self._scales.get(key, one), role)


def steps_key(key: str) -> str:
    """Under which key the steps of rows of `left` are stored that are stored under another."""
    return f"{key}, left steps"


def in_eight_bits(rows: Tensor, bits: FactorBits) -> tuple[Tensor, Tensor]:
    """Rows as integers of 8 bits, and their steps in the rows' type."""
    integers, steps = quantize(rows, bits)
    return integers.to(torch.int8), steps.to(rows.dtype)


def _as_parameter(rows: Tensor) -> Tensor:
    # What is a parameter is applied as it is; a plain tensor may be one of a transform of torch.func.
    return rows if torch.compiler.is_compiling() else nn.Parameter(rows, requires_grad=False)


def build_factor_store(gm: fx.GraphModule, generator: SMHGenerator, plan: LoweringPlan) -> FactorStore:
    """Compute all that a plan says is stored.

    Args:
        gm: the transformed model that was planned; it is left untouched.
        generator: its generator.
        plan: how each weight is computed.
    """
    nodes = {node.name: node for node in gm.graph.nodes}
    tensors: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for use in plan.uses:
        norm = foldable_norm(gm, nodes[use.node]) if use.folded_norm else None
        for each in use.stored:
            key = use.key(each.role)
            if key not in tensors:
                tensors[key] = _tensor(generator, use, each.role, norm, plan.factor_bits).detach()
                assert tensors[key].shape == each.shape, key
                if each.role in _ROWS and tensors[key].is_floating_point():
                    scales[key] = _scale(generator, use, each.role, each.shape[0], norm)
    right, rounded_to = generator.factor_right().detach(), plan.factor_bits or generator.rounded_to
    store = FactorStore(generator.plan, plan, generator.captured, right, tensors, scales, rounded_to)
    store.original = generator.original
    return store


def _tensor(
    generator: SMHGenerator, use: WeightUse, role: str, norm: FoundNorm | None, bits: FactorBits | None
) -> Tensor:
    """The tensor of a role for a use, whose folded batch norm is given, and as which integers `left` is stored."""
    if role == "kernels":
        if not use.split:
            return generator.kernels_of(use.fqn)
        # They are the weight of a convolution, and have the type that it would have.
        return generator.depthwise_kernels(use.fqn).to(generator.dtype_of(generator.parameter(use.fqn)))
    if role == "shift":
        shift = generator.shift(use.fqn)
        assert shift is not None
        return shift.clone()
    if role == "weight":
        weight = generator(use.fqn, "pointwise" if use.split else "weight")
        return weight if norm is None else scale_channels(weight, norm.scale())
    if role in ("left", "left steps"):
        if bits is None:
            return _scaled(generator.scaled_left(use.fqn), generator, use, norm)
        integers, steps = in_eight_bits(generator.factor_left(use.fqn), bits)
        # A scale of a row is one of its steps.
        return integers if role == "left" else _scaled(generator.scaled(use.fqn, steps), generator, use, norm)
    assert norm is not None
    if role == "channel scale":
        return norm.scale().to(generator.right)
    return norm.folded_bias(generator.dtype_of(generator.parameter(use.fqn)))


def _scaled(rows: Tensor, generator: SMHGenerator, use: WeightUse, norm: FoundNorm | None) -> Tensor:
    """Rows of `left` with what else is to be multiplied into them."""
    if use.split:
        rows = rows * generator.balance(use.fqn)
    if norm is None or use.stores("channel scale"):
        return rows
    scale = norm.scale()
    return (rows * scale.repeat_interleave(rows.shape[0] // scale.shape[0]).unsqueeze(1)).to(rows.dtype)


@torch.no_grad()
def _scale(generator: SMHGenerator, use: WeightUse, role: str, count: int, norm: FoundNorm | None) -> Tensor:
    """What so many rows of a role are multiplied by; one number if it is the same for all."""
    ones = torch.ones(count, 1, device=generator.right.device)
    if role == "kernels":
        return ones[:1].cpu() / (generator.balance(use.fqn) if use.split else 1)
    scale = _scaled(generator.scaled(use.fqn, ones), generator, use, norm).cpu()
    return scale[:1].clone() if bool((scale == scale[0]).all()) else scale


def find_factor_store(module: object) -> FactorStore | None:
    """The factors of a lowered model; None if it is not one.

    Raises:
        TransformError: if `module` is no initialized module.
    """
    check_module(module)
    assert isinstance(module, nn.Module)
    return next((child for child in module.modules() if isinstance(child, FactorStore)), None)
