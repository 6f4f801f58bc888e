"""Fold an evaluated batch norm into the convolution before it: through the rows of its left factor and its bias."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


class FoundNorm(NamedTuple):
    """A batch norm that is the only reader of a convolution."""

    node: fx.Node
    module: nn.modules.batchnorm._BatchNorm


def batch_norm_after(graph_module: fx.GraphModule, node: fx.Node) -> FoundNorm | None:
    """The batch norm that reads a convolution's output and nothing else does; None if there is none to fold."""
    if node.target not in _CONVOLUTIONS or len(node.users) != 1:
        return None
    (user,) = node.users
    module = graph_module.get_submodule(str(user.target)) if user.op == "call_module" else None
    foldable = (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and not module.training
        and module.running_mean is not None
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )
    return FoundNorm(user, module) if foldable and isinstance(module, nn.modules.batchnorm._BatchNorm) else None


def norm_scale(norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
    """What an evaluated batch norm multiplies each channel by: `weight / sqrt(running_var + eps)`."""
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    return scale if norm.weight is None else scale * norm.weight.detach()


def folded_bias(norm: nn.modules.batchnorm._BatchNorm, bias: Tensor | None) -> Tensor:
    """The bias of a convolution that does the norm's work too: `(bias - running_mean) * scale + norm.bias`."""
    assert norm.running_mean is not None
    centred = -norm.running_mean if bias is None else bias - norm.running_mean
    folded = centred * norm_scale(norm)
    return folded if norm.bias is None else folded + norm.bias.detach()
