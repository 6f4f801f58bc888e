"""The module of a lowered model that holds the factors: all that its plan says is stored."""

from __future__ import annotations

import re

from torch import Tensor, fx, nn

from fxhash.errors import InputError
from fxhash.graph.names import free_name
from fxhash.lowering.batch_norm import FoundNorm, foldable_norm
from fxhash.lowering.functional import scale_channels
from fxhash.lowering.plan import LoweringPlan, WeightUse
from fxhash.smh.checks import check_module
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.plan import CompressionPlan


class FactorStore(nn.Module):
    """The factors of a lowered model: `right`, and what is stored for each use of a weight.

    Called without arguments it returns `right`, called with a key the tensor that is stored under it.

    Args:
        compression: the plan of the transformed model.
        plan: how each weight is computed.
        captured: how the model became a graph, for the summary.
        right: the shared right factor; shape `(rank, cols)`.
        tensors: what is stored, by `WeightUse.key`.

    Attributes:
        original: that of the transformed model's generator.
    """

    original: object = None

    def __init__(
        self, compression: CompressionPlan, plan: LoweringPlan, captured: str, right: Tensor, tensors: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.compression = compression
        self.plan = plan
        self.captured = captured
        self.right = nn.Parameter(right, requires_grad=False)
        self._attributes: dict[str, str] = {}
        for key, tensor in tensors.items():
            self._attributes[key] = attribute = free_name(self, re.sub(r"\W+", "_", key))
            self.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
        self.eval()

    def forward(self, key: str | None = None) -> Tensor:
        """`right`, or the tensor under `key`.

        Raises:
            InputError: if the lowered model is called to be trained.
        """
        # Without a search for each attribute: this is called for every tensor of every layer.
        parameters = self._parameters
        if self.training or parameters["right"].requires_grad:  # type: ignore[union-attr]  # it is never None
            raise InputError(
                "this model is lowered, which is for inference alone: train the transformed model that it was made of, "
                "and lower it again; to call this one, .eval() and .requires_grad_(False) it"
            )
        tensor = parameters["right" if key is None else self._attributes[key]]
        assert tensor is not None
        return tensor


def build_factor_store(gm: fx.GraphModule, generator: SMHGenerator, plan: LoweringPlan) -> FactorStore:
    """Compute all that a plan says is stored.

    Args:
        gm: the transformed model that was planned; it is left untouched.
        generator: its generator.
        plan: how each weight is computed.
    """
    nodes = {node.name: node for node in gm.graph.nodes}
    tensors: dict[str, Tensor] = {}
    for use in plan.uses:
        norm = foldable_norm(gm, nodes[use.node]) if use.folded_norm else None
        for each in use.stored:
            key = use.key(each.role)
            if key not in tensors:
                tensors[key] = _tensor(generator, use, each.role, norm).detach()
                assert tensors[key].shape == each.shape, key
    store = FactorStore(generator.plan, plan, generator.captured, generator.right.detach(), tensors)
    store.original = generator.original
    return store


def _tensor(generator: SMHGenerator, use: WeightUse, role: str, norm: FoundNorm | None) -> Tensor:
    """The tensor of a role for a use, whose folded batch norm is given."""
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
    left = generator.scaled_left(use.fqn)
    if use.split:
        left = left * generator.balance(use.fqn)
    if role == "left":
        if norm is None or use.stores("channel scale"):
            return left
        scale = norm.scale()
        return (left * scale.repeat_interleave(left.shape[0] // scale.shape[0]).unsqueeze(1)).to(left.dtype)
    assert norm is not None
    return norm.scale().to(left) if role == "channel scale" else norm.folded_bias()


def find_factor_store(module: object) -> FactorStore | None:
    """The factors of a lowered model; None if it is not one.

    Raises:
        TransformError: if `module` is no initialized module.
    """
    check_module(module)
    assert isinstance(module, nn.Module)
    return next((child for child in module.modules() if isinstance(child, FactorStore)), None)
