"""Hidden states of two models that make the same calls: what norms or, without any, activations return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_NORMS = {"layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm"}
_ACTIVATIONS = {"relu", "relu6", "gelu", "silu", "elu", "leaky_relu", "hardswish", "mish", "tanh", "sigmoid"}


class HiddenStates(TorchFunctionMode):
    """Keeps what norms and activations return while it is active, in the order of the calls.

    A transformed model, in any form in which it can be trained, calls them as the original does: they have no weights
    that are generated.
    """

    def __init__(self) -> None:
        super().__init__()
        self._norms: list[Tensor] = []
        self._activations: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").rstrip("_")
        if isinstance(result, Tensor) and result.is_floating_point():
            if name in _NORMS:
                self._norms.append(result)
            elif name in _ACTIVATIONS:
                self._activations.append(result)
        return result

    @property
    def values(self) -> list[Tensor]:
        """What was kept: of norms, or of activations where there are no norms."""
        return self._norms or self._activations


def correspond(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether tensors can be compared one by one."""
    return [each.shape for each in ours] == [each.shape for each in theirs]


def relative_errors(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """The mean over pairs of tensors of the squared error over the square of the second one.

    Args:
        ours: any number of tensors, at least one.
        theirs: of the same shapes.

    Example:
        >>> import torch
        >>> relative_errors([torch.tensor([3.0, 0.0])], [torch.tensor([3.0, 1.0])]).item()
        0.10000000149011612
    """
    total = ours[0].new_zeros(())
    for one, other in zip(ours, theirs, strict=True):
        other = other.to(one.device).float()
        total = total + (one.float() - other).square().sum() / other.square().sum().clamp(min=1e-30)
    return total / len(ours)
