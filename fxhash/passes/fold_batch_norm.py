"""Fold an evaluated batch norm into the convolution before it: through the rows of its left factor and its bias."""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxhash.capture.leaf_modules import TrainingFlag
from fxhash.graph.arguments import all_arguments
from fxhash.graph.layers import CONVOLUTIONS


class FoundNorm(NamedTuple):
    """A batch norm that is the only reader of a convolution.

    Attributes:
        node: its call, of a module or of `F.batch_norm`.
        weight: of shape `(channels,)`, like the others; None for ones.
        bias: None for zeros.
        running_mean: the mean that it takes away.
        running_var: the variance that it divides by.
        eps: what it adds to the variance.
    """

    node: fx.Node
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    eps: float


def batch_norm_after(graph_module: fx.GraphModule, node: fx.Node) -> FoundNorm | None:
    """The batch norm that reads a convolution's output and nothing else does; None if there is none to fold."""
    if node.target not in CONVOLUTIONS.values() or len(node.users) != 1:
        return None
    (user,) = node.users
    if user.op == "call_module":
        return _of_module(user, graph_module.get_submodule(str(user.target)))
    return _of_function(graph_module, user, node) if user.target is F.batch_norm else None


def _of_module(node: fx.Node, norm: nn.Module) -> FoundNorm | None:
    # Some norms of others' do more, such as those of timm, which end in an activation.
    plain = {nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward}
    if (
        not isinstance(norm, nn.modules.batchnorm._BatchNorm)
        or type(norm).forward not in plain
        or "forward" in vars(norm)
        or norm.training
        or norm.running_mean is None
        or norm.running_var is None
        or norm._forward_hooks
        or norm._forward_pre_hooks
    ):
        return None
    return FoundNorm(node, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


def _of_function(graph_module: fx.GraphModule, node: fx.Node, convolution: fx.Node) -> FoundNorm | None:
    given = all_arguments(node)
    training = given["training"]
    if isinstance(training, fx.Node) and training.op == "call_module":
        flag = graph_module.get_submodule(str(training.target))
        training = flag.training if isinstance(flag, TrainingFlag) else training
    tensors = {name: given[name] for name in ("weight", "bias", "running_mean", "running_var")}
    stored = all(value is None or (isinstance(value, fx.Node) and value.op == "get_attr") for value in tensors.values())
    if training is not False or not stored or given["input"] is not convolution or tensors["running_mean"] is None:
        return None
    values = {name: value and attrgetter(value.target)(graph_module) for name, value in tensors.items()}
    return FoundNorm(node, **values, eps=given["eps"])


def norm_scale(norm: FoundNorm) -> Tensor:
    """What an evaluated batch norm multiplies each channel by: `weight / sqrt(running_var + eps)`."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    return scale if norm.weight is None else scale * norm.weight.detach()


def folded_bias(norm: FoundNorm, bias: Tensor | None) -> Tensor:
    """The bias of a convolution that does the norm's work too: `(bias - running_mean) * scale + norm.bias`."""
    centred = -norm.running_mean if bias is None else bias - norm.running_mean
    folded = centred * norm_scale(norm)
    return folded if norm.bias is None else folded + norm.bias.detach()
