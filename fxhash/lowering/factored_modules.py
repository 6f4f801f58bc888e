"""Modules nested in opaque submodules, lowered one by one: each computes its weights when it is called.

The opaque submodule's own code calls its layers as before and may read their attributes: a `weight` that it reads is
generated then. Linear layers, convolutions and embeddings apply the factors directly where that is less work. Any other
module, such as experts, a recurrent layer or a layer of the user's own, has its parameters generated for each call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fxhash.capture.replicas import call_with_parameters
from fxhash.lowering.factor_store import FactorStore, steps_key
from fxhash.lowering.factored_tensor import as_factored
from fxhash.lowering.functional import (
    adaptive_conv,
    adaptive_linear,
    factored_conv,
    factored_linear,
)
from fxhash.lowering.generated_parameters import GeneratedParameters, given_parameter
from fxhash.lowering.input_check import checked_input
from fxhash.lowering.lookup import factored_embedding
from fxhash.lowering.method import Method
from fxhash.smh.arithmetic import generate

_Base: Any = nn.Module if TYPE_CHECKING else object


class WeightSource(NamedTuple):
    """How to compute one weight. A tuple, so that the factor store is no child of the module that has it.

    Attributes:
        factors: the factor store.
        key: under which it holds the scaled rows of `left`.
        shape: shape of the weight.
        shift_key: under which it holds a constant to add; empty if there is none.
        dtype: type of the weight; None for that of the factors.
        is_factored: whether the module gets a factored tensor, which it multiplies by.
        fqn: the parameter's fully qualified name.
    """

    factors: FactorStore
    key: str
    shape: tuple[int, ...]
    shift_key: str = ""
    dtype: torch.dtype | None = None
    is_factored: bool = False
    fqn: str = ""

    @property
    def own_factors(self) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """`left`, `right` and the weight's shape."""
        left = self.factors(self.key)
        return left, self.factors(rows=left.shape[1]), self.shape

    def checked(self, x: Tensor, is_embedding: bool = False) -> Tensor:
        """The input of a layer with this weight, if it fits."""
        return checked_input(x, self.fqn, self.shape, is_embedding)

    def look_up(self, indices: Tensor) -> Tensor:
        """Rows of a table."""
        bits = self.factors.plan.factor_bits
        if bits is None:
            return factored_embedding(indices, *self.own_factors)
        left, steps = self.factors(self.key, is_widened=False), self.factors(steps_key(self.key))
        rank = left.shape[1]
        return factored_embedding(indices, left, self.factors(rows=rank), self.shape, steps, bits.size(rank))

    def generate(self) -> Tensor:
        """The weight, materialized, in memory of its own."""
        shift = self.factors(self.shift_key) if self.shift_key else None
        return generate(*self.own_factors, shift).to(self.dtype)

    def weight(self) -> Tensor:
        """What the module gets as its parameter: the weight, or a factored tensor that stands for it."""
        return as_factored(*self.own_factors) if self.is_factored else self.generate()


class LoweredLayer(_Base):
    """What the lowered layers of all kinds share; made of a layer by `lower_layer`.

    Attributes:
        source: how to compute the weight.
        order: names of the parameters of the original layer.
        method: factored, adaptive or generate.
        max_positions: for an adaptive layer, up to how many positions to apply the factors.
    """

    source: WeightSource
    order: tuple[str, ...]
    method: Method
    max_positions: int

    @property
    def weight(self) -> Tensor:
        """The weight, generated for this access; of a factored matrix, a factored tensor that stands for it.

        That has the matrix's type and shape, and is materialized where it is computed with: language models read the
        type of their output layer in each call, whose weight is the largest. It stands for matrices alone.
        """
        given = given_parameter(self._parameters, "weight")
        if given is not None:
            return given
        is_matrix = len(self.source.shape) == 2
        weight = (
            as_factored(*self.source.own_factors)
            if is_matrix and self.method is Method.FACTORED
            else self.source.generate()
        )
        if not torch.compiler.is_compiling():
            # So that it is a parameter to all that ask.
            weight._is_param = True
        return weight

    @property
    def applies_factors(self) -> bool:
        """Whether to apply factors, for some inputs at least: not where a call has given it another weight."""
        return self.method is not Method.GENERATE and given_parameter(self._parameters, "weight") is None

    def parameters_in_call(self) -> GeneratedParameters:
        """The table of parameters of a replica."""
        return GeneratedParameters(dict.copy(self._parameters), self.order, {"weight": self.source.generate})


class LoweredLinear(LoweredLayer, nn.Linear):  # type: ignore[override]
    """A linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """As the layer that it stands for."""
        if not self.applies_factors:
            return super().forward(input)
        input = self.source.checked(input)
        if self.method is Method.FACTORED:
            return factored_linear(input, *self.source.own_factors, self.bias)
        return adaptive_linear(input, *self.source.own_factors, self.bias, self.max_positions)


class _LoweredConvolution(LoweredLayer):
    def forward(self, input: Tensor) -> Tensor:
        """As the layer that it stands for."""
        if not self.applies_factors:
            return super().forward(input)
        input = self.source.checked(input)
        given = (self.bias, self.stride, self.padding, self.dilation)
        if self.method is Method.FACTORED:
            return factored_conv(input, *self.source.own_factors, *given)
        return adaptive_conv(input, *self.source.own_factors, *given, self.max_positions)


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
        if not self.applies_factors:
            return super().forward(input)
        return self.source.look_up(self.source.checked(input, is_embedding=True))


_LOWERED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LoweredLinear,
    nn.Conv1d: LoweredConv1d,
    nn.Conv2d: LoweredConv2d,
    nn.Conv3d: LoweredConv3d,
    nn.Embedding: LoweredEmbedding,
}


def can_be_lowered(layer: nn.Module) -> bool:
    """Whether a layer is of a kind that can multiply by the factors itself."""
    return (
        type(layer) in _LOWERED
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and getattr(layer, "max_norm", None) is None
    )


def can_be_factored(layer: nn.Module) -> bool:
    """Whether its arithmetic is one that a layer of factors has: not grouped, padded with zeros."""
    return getattr(layer, "groups", 1) == 1 and getattr(layer, "padding_mode", "zeros") == "zeros"


def lower_layer(layer: nn.Module, source: WeightSource, method: Method, max_positions: int = 0) -> nn.Module:
    """The same layer, with everything it has but its weight; `layer` itself is left untouched."""
    changed = {"source": source, "order": tuple(layer._parameters), "method": method, "max_positions": max_positions}
    return _of_class(_LOWERED[type(layer)], layer, ["weight"], **changed)


class GeneratesParameters(_Base):
    """A module of any class whose parameters are generated for each call of it, or when they are read.

    Attributes:
        sources: how to compute each of its own parameters, by name.
        order: names of the parameters of the original module.
    """

    sources: dict[str, WeightSource]
    order: tuple[str, ...]
    _made_of: tuple[type[nn.Module], tuple[str, ...]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module that it stands for."""
        kind, names = self._made_of
        if torch.compiler.is_compiling() and not issubclass(kind, nn.RNNBase):
            # Older compilers can't follow replicas; they generate a weight once that is read twice.
            return kind.forward(self, *args, **kwargs)
        weights = [getattr(self, name) for name in names]
        return call_with_parameters(self, kind, names, weights, args, kwargs)

    def parameters_in_call(self) -> GeneratedParameters:
        """The table of parameters of a replica."""
        inner = getattr(super(), "parameters_in_call", None)
        own = dict.copy(self._parameters) if inner is None else inner()
        return GeneratedParameters(own, self.order, {name: source.weight for name, source in self.sources.items()})

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        _, _, *state = super().__reduce_ex__(protocol)
        return _empty, self._made_of, *state


def can_generate_parameters(module: nn.Module) -> bool:
    """Whether a module runs its class's own forward, which can then be given other parameters."""
    return not isinstance(module, torch.jit.ScriptModule) and "forward" not in vars(module)


def can_take_factored(module: nn.Module) -> bool:
    """Whether a module multiplies by its matrices and does nothing else with them."""
    return type(module) in (nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear)


def generate_parameters(module: nn.Module, sources: Mapping[str, WeightSource]) -> nn.Module:
    """The same module with some parameters generated; `module` itself is left untouched."""
    kind = _generating(type(module), tuple(sources))  # type: ignore[arg-type]  # mypy: no hash of a Module's class
    return _of_class(kind, module, sources, sources=dict(sources), order=_order(module))


@cache
def _generating(kind: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    def reading(name: str) -> property:
        def read(self: GeneratesParameters) -> Tensor:
            given = given_parameter(self._parameters, name)
            return self.sources[name].weight() if given is None else given

        return property(read)

    attributes: dict[str, Any] = {name: reading(name) for name in names}
    return type(kind.__name__, (GeneratesParameters, kind), {**attributes, "_made_of": (kind, names)})


def _order(module: nn.Module) -> tuple[str, ...]:
    order: tuple[str, ...] = getattr(module, "order", ()) if isinstance(module, LoweredLayer) else ()
    return order or tuple(module._parameters)


def _empty(kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    generating = _generating(kind, names)  # type: ignore[arg-type]
    return generating.__new__(generating)


def _of_class(kind: type[nn.Module], module: nn.Module, without: Collection[str], **attributes: Any) -> nn.Module:
    """A module of another class with everything that `module` has but some parameters."""
    changed = object.__new__(kind)
    vars(changed).update({**vars(module), "_modules": dict(module._modules), "_buffers": dict(module._buffers)})
    vars(changed)["_parameters"] = {name: each for name, each in module._parameters.items() if name not in without}
    vars(changed).update(attributes)
    return changed
