"""Small leaf modules that stand in a traced graph for what `torch.fx` can't record as a node of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

# Where an opaque part lies below the path of the module that it wraps. Beside it lie the parameters that it is
# handed: they can't lie on the part or the module, which would then keep them.
OPAQUE_PART = "opaque_part"
_WRAPPED = "wrapped_module"


class TrainingFlag(nn.Module):
    """Returns its own `training` flag, so that a traced `self.training` follows `train()` and `eval()`."""

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.training = training

    def forward(self) -> bool:
        """The flag of the module that it stands for."""
        return self.training


class TensorConstant(nn.Module):
    """Returns a tensor that is no parameter and not part of the state dict.

    As a `get_attr` node, `torch.fx` would turn it into a persistent buffer (whenever a graph module is built, copied
    or unpickled), and the state dict would grow.
    """

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def forward(self) -> Tensor:
        """The tensor itself, not a copy."""
        return self.value


class OpaquePart(nn.Module):
    """Calls a module that can't be traced, with parameters that come from outside.

    The wrapped module's own parameters are emptied, so that nothing dense stays behind; its buffers, hooks and
    `training` flags are its own and work as before.

    Args:
        module: the module to call; its parameters are removed from it.
        names: for each parameter that `forward` will be given, its names inside `module` (several if tied).
        reason: why it can't be traced, for the summary.
    """

    def __init__(self, module: nn.Module, names: Sequence[tuple[str, ...]], reason: str) -> None:
        super().__init__()
        self.wrapped_module = module
        self.names = tuple(names)
        self.reason = reason
        self._empty()

    def forward(self, parameters: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the wrapped module with `args` and `kwargs`, and `parameters` in the order of `names`."""
        try:
            self.fill(parameters)
            return self.wrapped_module(*args, **kwargs)
        finally:
            self._empty()

    def fill(self, parameters: Sequence[Tensor]) -> None:
        """Give the wrapped module parameters; a call of this part takes them away again."""
        for names, parameter in zip(self.names, parameters, strict=True):
            self._assign(names, parameter)
        for recurrent in self._recurrent_layers():
            recurrent._flat_weights = [getattr(recurrent, name, None) for name in recurrent._flat_weights_names]

    def _empty(self) -> None:
        for names in self.names:
            self._assign(names, None)
        for recurrent in self._recurrent_layers():
            recurrent._flat_weights = [None] * len(recurrent._flat_weights_names)

    def _assign(self, names: tuple[str, ...], parameter: Tensor | None) -> None:
        for name in names:
            owner, _, attribute = name.rpartition(".")
            # Past nn.Module.__setattr__, which accepts nothing but an nn.Parameter under a parameter's name.
            parameters: dict[str, Any] = self.wrapped_module.get_submodule(owner)._parameters
            parameters[attribute] = parameter

    def _recurrent_layers(self) -> Iterator[Any]:
        """Recurrent layers read a list of weights that is made when they are built, not their parameters."""
        return (module for module in self.wrapped_module.modules() if isinstance(module, nn.RNNBase))

    def extra_repr(self) -> str:
        """Why the part is opaque, for `repr`."""
        return f"reason={self.reason!r}"


def original_name(name: str) -> str:
    """The name in the original model of a parameter or buffer of a traced one.

    Example:
        >>> original_name("encoder.attention.opaque_part.wrapped_module.bias")
        'encoder.attention.bias'
    """
    return ".".join(atom for atom in name.split(".") if atom not in (OPAQUE_PART, _WRAPPED))
