"""Opaque submodules: called as a whole, with parameters that come from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fxhash.capture.copy_model import copy_model
from fxhash.capture.replicas import replicate, set_parameters, take_over


class OpaqueModule(nn.Module):
    """An opaque submodule: calls a module that can't be traced, with parameters that come from outside.

    The wrapped module's own parameters are emptied, so that nothing dense stays behind; its buffers, hooks and
    `training` flags are its own and work as before.

    Args:
        module: the module to call; its parameters are removed from it.
        names: for each parameter that `forward` will be given, its names in `module` (several if tied).
        reason: why it can't be traced, for the summary.
        defaults: keyword arguments that the module is not given where they have exactly this value, since decorators
            may tell an argument that is omitted from one that has its default.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[tuple[str, ...]],
        reason: str,
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.wrapped_module = module
        self.names = tuple(names)
        self.reason = reason
        self.defaults = dict(defaults)
        set_parameters(module, self.names, [None] * len(self.names))

    def forward(
        self,
        parameters: Sequence[Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        more_args: Sequence[Any] = (),
        more_kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Call the wrapped module with `args` and `kwargs`, and `parameters` in the order of `names`.

        What a model's own `*args` and `**kwargs` collect comes as `more_args` and `more_kwargs`.

        The call runs on a replica that shares everything with the wrapped module but holds `parameters`: other threads,
        and a checkpoint that runs the module again in backward, see what they were given.
        """
        args = (*args, *more_args)
        kwargs = {name: value for name, value in kwargs.items() if value is not self.defaults.get(name, ...)}
        # Torch's interpreter, by which it exports, gives an empty list where no keywords are left to collect.
        kwargs |= dict(more_kwargs)
        recurrent = any(isinstance(module, nn.RNNBase) for module in self.wrapped_module.modules())
        if torch.compiler.is_compiling() and not recurrent:
            # Older compilers can't follow replicas; calls don't meet in compiled code.
            named = {name: weight for names, weight in zip(self.names, parameters, strict=True) for name in names}
            return torch.func.functional_call(self.wrapped_module, named, args, kwargs)
        replicas = replicate(self.wrapped_module)
        replica = replicas[id(self.wrapped_module)]
        set_parameters(replica, self.names, parameters)
        result = replica(*args, **kwargs)
        for module in self.wrapped_module.modules():
            take_over(module, replicas[id(module)])
        return result

    def replacing(self, layers: Mapping[nn.Module, nn.Module], names: Sequence[tuple[str, ...]]) -> OpaqueModule:
        """The same opaque submodule with other layers in place of some; this one is left untouched.

        Args:
            layers: the new layer for each that is replaced.
            names: for each parameter that `forward` of the new one will be given, its names in the wrapped module.
        """
        replicas = replicate(self.wrapped_module, instead=layers)
        return OpaqueModule(replicas[id(self.wrapped_module)], names, self.reason, self.defaults)

    def unwrapped(self, parameters: Sequence[nn.Parameter]) -> nn.Module:
        """The plain module that was wrapped, with parameters of its own again; this one is left untouched.

        Args:
            parameters: one for each of `names`.

        Returns:
            A copy of the wrapped module. It shares with it the buffers, and the parameters that are not in `names`.
        """
        wrapped = self.wrapped_module
        parameters_and_buffers = (
            *wrapped.named_parameters(remove_duplicate=False),
            *wrapped.named_buffers(remove_duplicate=False),
        )
        module = copy_model(wrapped, shared={name for name, _ in parameters_and_buffers})
        set_parameters(module, self.names, parameters)
        return module

    def extra_repr(self) -> str:
        """Why the module is opaque, for `repr`."""
        return f"reason={self.reason!r}"
