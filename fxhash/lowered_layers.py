"""Layers inside of parts that can't be traced, lowered one by one: each comes by its weight when it is called.

A part's own code calls its layers as before and may read their attributes: a `weight` that it reads is generated then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fxhash.deployed import DeployedFactors
from fxhash.factored import conv_by_size, conv_in_turn, embedding_in_turn, linear_by_size, linear_in_turn
from fxhash.product import generate

_Base: Any = nn.Module if TYPE_CHECKING else object


class LoweredLayer(_Base):
    """What the lowered layers of all kinds share; made of a layer by `lower_layer`.

    Attributes:
        factors: the module that holds the factors, in a tuple so that it is not this one's child.
        key: under which the factors hold the scaled rows of `left`.
        weight_shape: shape of the weight.
        method: `"in turn"`, `"by size"` or `"generate"`.
        most: for `"by size"`, up to how many positions to multiply in turn.
    """

    factors: tuple[DeployedFactors]
    key: str
    weight_shape: tuple[int, ...]
    method: str
    most: int

    @property
    def weight(self) -> Tensor:
        """The weight, generated for this access."""
        (factors,) = self.factors
        return generate(factors(self.key), factors(), self.weight_shape)

    def own_factors(self) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """`left`, `right` and the weight's shape."""
        (factors,) = self.factors
        return factors(self.key), factors(), self.weight_shape


class LoweredLinear(LoweredLayer, nn.Linear):  # type: ignore[override]
    """A linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """As the layer that it stands for."""
        if self.method == "in turn":
            return linear_in_turn(input, *self.own_factors(), self.bias)
        if self.method == "by size":
            return linear_by_size(input, *self.own_factors(), self.bias, self.most)
        return super().forward(input)


class _LoweredConvolution(LoweredLayer):
    def forward(self, input: Tensor) -> Tensor:
        """As the layer that it stands for."""
        if self.method == "generate":
            return super().forward(input)
        given = (self.bias, self.stride, self.padding, self.dilation)
        if self.method == "in turn":
            return conv_in_turn(input, *self.own_factors(), *given)
        return conv_by_size(input, *self.own_factors(), *given, self.most)


class LoweredConv1d(_LoweredConvolution, nn.Conv1d):  # type: ignore[override]
    """A convolution over one dimension."""


class LoweredConv2d(_LoweredConvolution, nn.Conv2d):  # type: ignore[override]
    """A convolution over two dimensions."""


class LoweredConv3d(_LoweredConvolution, nn.Conv3d):  # type: ignore[override]
    """A convolution over three dimensions."""


class LoweredEmbedding(LoweredLayer, nn.Embedding):  # type: ignore[override]
    """An embedding."""

    def forward(self, input: Tensor) -> Tensor:
        """As the layer that it stands for."""
        return super().forward(input) if self.method == "generate" else embedding_in_turn(input, *self.own_factors())


_LOWERED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LoweredLinear,
    nn.Conv1d: LoweredConv1d,
    nn.Conv2d: LoweredConv2d,
    nn.Conv3d: LoweredConv3d,
    nn.Embedding: LoweredEmbedding,
}


def can_be_lowered(layer: nn.Module) -> bool:
    """Whether a layer is of a kind that can come by its weight when it is called."""
    return (
        type(layer) in _LOWERED
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and getattr(layer, "max_norm", None) is None
    )


def can_multiply_in_turn(layer: nn.Module) -> bool:
    """Whether its arithmetic is one that a layer of factors has: not grouped, padded with zeros."""
    return getattr(layer, "groups", 1) == 1 and getattr(layer, "padding_mode", "zeros") == "zeros"


def lower_layer(
    layer: nn.Module, factors: DeployedFactors, key: str, shape: tuple[int, ...], method: str, most: int = 0
) -> nn.Module:
    """The same layer, with everything it has but its weight; `layer` itself is left untouched."""
    lowered = object.__new__(_LOWERED[type(layer)])
    state = dict(vars(layer))
    state["_parameters"] = {name: value for name, value in layer._parameters.items() if name != "weight"}
    state |= {"factors": (factors,), "key": key, "weight_shape": tuple(shape), "method": method, "most": most}
    vars(lowered).update(state)
    return lowered
