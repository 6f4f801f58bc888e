"""Evaluated batch norms after convolutions: found, and as a scale and a bias for each channel."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fxhash.capture.leaf_modules import TrainingFlag
from fxhash.errors import TransformError
from fxhash.graph.arguments import all_arguments
from fxhash.graph.layers import CONVOLUTIONS


@dataclass(frozen=True)
class FoundNorm:
    """An evaluated batch norm that is the only reader of a convolution's output.

    Attributes:
        node: its call, of a module or of `F.batch_norm`.
        weight: of shape `(channels,)`, like the others; None for ones.
        bias: None for zeros.
        running_mean: the mean that it takes away.
        running_var: the variance that it divides by.
        eps: what it adds to the variance.
        convolution_bias: the bias of the convolution before it; None for zeros.
    """

    node: fx.Node
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    eps: float
    convolution_bias: Tensor | None

    def scale(self) -> Tensor:
        """What it multiplies each channel by, as of `channel_scale`."""
        return channel_scale(self.weight, self.running_var, self.eps)

    def folded_bias(self, dtype: torch.dtype) -> Tensor:
        """The bias of a convolution that does the norm's work too: `(bias - running_mean) * scale + norm.bias`.

        Args:
            dtype: the type of the convolution, which the norm's own numbers may not have.
        """
        mean = self.running_mean
        centred = -mean if self.convolution_bias is None else self.convolution_bias.detach() - mean
        folded = centred * self.scale()
        return (folded if self.bias is None else folded + self.bias.detach()).to(dtype)

    def fits(self, dtype: torch.dtype, largest_weight: float) -> bool:
        """Whether a type can hold the weight, the scale and the bias that folding it makes.

        Args:
            dtype: the type of the convolution's weight.
            largest_weight: what no entry of that weight exceeds.
        """
        scale, largest = self.scale().abs().max().item(), torch.finfo(dtype).max
        return scale <= largest and scale * largest_weight <= largest and bool(self.folded_bias(dtype).isfinite().all())


def channel_scale(weight: Tensor | None, running_var: Tensor, eps: float) -> Tensor:
    """What an evaluated norm multiplies each channel by: `weight / sqrt(running_var + eps)`, in float32 at least.

    As batch norms compute: `running_var + eps` may round to zero in float16.

    Args:
        weight: of shape `(channels,)`; None for ones.
        running_var: of the same shape.
        eps: what is added to it.
    """
    scale = torch.rsqrt(running_var.to(torch.promote_types(running_var.dtype, torch.float32)) + eps)
    return scale if weight is None else scale * weight.detach()


def foldable_norm(graph_module: fx.GraphModule, convolution: fx.Node) -> FoundNorm | None:
    """The batch norm that can be folded into a convolution: its only reader, evaluated, with stored statistics.

    Args:
        graph_module: whose batch norms are read and not changed.
        convolution: a call of `F.conv1d`, `F.conv2d` or `F.conv3d`; for any other node there is none.
    """
    if convolution.target not in CONVOLUTIONS.values() or len(convolution.users) != 1:
        return None
    bias = all_arguments(convolution)["bias"]
    if not _is_stored(bias):
        return None
    value = _value(graph_module, bias)
    (reader,) = convolution.users
    if reader.op == "call_module":
        return _of_module(reader, graph_module.get_submodule(str(reader.target)), value)
    return _of_function(graph_module, reader, convolution, value) if reader.target is F.batch_norm else None


def _of_module(node: fx.Node, norm: nn.Module, convolution_bias: Tensor | None) -> FoundNorm | None:
    if not is_plain_norm(norm) or norm.training:
        return None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return FoundNorm(node, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, convolution_bias)


def is_plain_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a module is a batch norm with statistics that does nothing else, and has no hook but `evaluated_only`."""
    # Some norms of others' do more, such as those of timm, which end in an activation.
    plain = {_BatchNorm.forward, nn.SyncBatchNorm.forward}
    return (
        isinstance(module, _BatchNorm)
        and type(module).forward in plain
        and "forward" not in vars(module)
        and module.running_mean is not None
        and module.running_var is not None
        and not module._forward_hooks
        and all(hook is evaluated_only for hook in module._forward_pre_hooks.values())
    )


def evaluated_only(norm: nn.Module, inputs: object) -> None:
    """Forward pre-hook of a batch norm whose statistics lie in its weight and bias, so that it can't be trained.

    Raises:
        TransformError: if the norm is in training mode.
    """
    if norm.training:
        raise TransformError(
            "the batch norms of this model come from a file that was saved with fold_batch_norms=True, so it can only "
            "be evaluated: call .eval() first; to train it, load a file that was saved without"
        )


def _of_function(
    graph_module: fx.GraphModule, node: fx.Node, convolution: fx.Node, convolution_bias: Tensor | None
) -> FoundNorm | None:
    given = all_arguments(node)
    training = given["training"]
    if isinstance(training, fx.Node) and training.op == "call_module":
        flag = graph_module.get_submodule(str(training.target))
        training = flag.training if isinstance(flag, TrainingFlag) else training
    tensors = {name: given[name] for name in ("weight", "bias", "running_mean", "running_var")}
    stored = all(map(_is_stored, tensors.values()))
    if training is not False or not stored or given["input"] is not convolution or tensors["running_mean"] is None:
        return None
    values = {name: _value(graph_module, value) for name, value in tensors.items()}
    return FoundNorm(node, **values, eps=given["eps"], convolution_bias=convolution_bias)  # type: ignore[arg-type]


def _is_stored(value: object) -> bool:
    return value is None or (isinstance(value, fx.Node) and value.op == "get_attr")


def _value(graph_module: fx.GraphModule, node: fx.Node | None) -> Tensor | None:
    return None if node is None else attrgetter(str(node.target))(graph_module)
