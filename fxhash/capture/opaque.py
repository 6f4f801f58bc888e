"""Opaque submodules: called as a whole, with parameters that come from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn


class OpaqueModule(nn.Module):
    """Calls a module that can't be traced, with parameters that come from outside.

    The wrapped module's own parameters are emptied, so that nothing dense stays behind; its buffers, hooks and
    `training` flags are its own and work as before.

    Args:
        module: the module to call; its parameters are removed from it.
        names: for each parameter that `forward` will be given, its names inside `module` (several if tied).
        reason: why it can't be traced, for the summary.
        defaults: keyword arguments that the module is not given where they have exactly this value, since decorators
            may tell an argument that is left out from one that has its default.
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
        _assign(module, self.names, [None] * len(self.names))

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
        replicas = {id(module): _replica(module) for module in self.wrapped_module.modules()}
        _connect(replicas)
        replica = replicas[id(self.wrapped_module)]
        _assign(replica, self.names, parameters)
        result = replica(*args, **kwargs)
        for module in self.wrapped_module.modules():
            _take_over(module, replicas[id(module)])
        return result

    def replacing(self, layers: Mapping[nn.Module, nn.Module], names: Sequence[tuple[str, ...]]) -> OpaqueModule:
        """The same part with other layers in place of some; this one is left untouched.

        Args:
            layers: the new layer for each that is replaced.
            names: for each parameter that `forward` of the new part will be given, its names inside of it.
        """
        replicas = {
            id(module): layers[module] if module in layers else _replica(module)
            for module in self.wrapped_module.modules()
        }
        _connect(replicas)
        return OpaqueModule(replicas[id(self.wrapped_module)], names, self.reason, self.defaults)

    def fill(self, parameters: Sequence[Tensor]) -> None:
        """Give the wrapped module parameters of its own."""
        _assign(self.wrapped_module, self.names, parameters)

    def extra_repr(self) -> str:
        """Why the part is opaque, for `repr`."""
        return f"reason={self.reason!r}"


def call_with_parameters(
    module: nn.Module,
    kind: type[nn.Module],
    names: Sequence[str],
    parameters: Sequence[Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run the forward of class `kind` on a replica of `module` that holds `parameters` of its own under `names`."""
    replica = _replica(module, kind)
    _assign(replica, [(name,) for name in names], parameters)
    result = replica.forward(*args, **kwargs)
    _take_over(module, replica)
    return result


def _assign(module: nn.Module, names: Sequence[tuple[str, ...]], parameters: Sequence[Tensor | None]) -> None:
    """Set each parameter under all of its names."""
    owners: dict[int, nn.Module] = {}
    for group, parameter in zip(names, parameters, strict=True):
        for name in group:
            path, _, attribute = name.rpartition(".")
            owner = module.get_submodule(path)
            owners[id(owner)] = owner
            # Past nn.Module.__setattr__, which accepts nothing but an nn.Parameter under a parameter's name.
            table: dict[str, Any] = owner._parameters
            table[attribute] = parameter
    for recurrent in owners.values():
        if isinstance(recurrent, nn.RNNBase):
            # Recurrent layers read a list of weights that is made when they are built, not their parameters.
            emptied = all(parameter is None for parameter in parameters)
            weights: list[Any] = [
                None if emptied else getattr(recurrent, name, None) for name in recurrent._flat_weights_names
            ]
            vars(recurrent)["_flat_weights"] = weights


def _replica(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    """The same module, maybe of another class, with tables of parameters, buffers and children of its own."""
    replica = object.__new__(kind or type(module))
    vars(replica).update(vars(module))
    for table in ("_parameters", "_buffers", "_modules"):
        vars(replica)[table] = dict(vars(module)[table])
    return replica


def _connect(replicas: Mapping[int, nn.Module]) -> None:
    """Give each replica the replicas of its module's children as its own."""
    for replica in replicas.values():
        children = vars(replica)["_modules"]
        children.update({name: child and replicas[id(child)] for name, child in children.items()})


def _take_over(module: nn.Module, replica: nn.Module) -> None:
    """Give a module the buffers and attributes that a call assigned on its replica."""
    vars(module)["_buffers"].update(vars(replica)["_buffers"])
    for name, value in vars(replica).items():
        computed = isinstance(value, Tensor) and not value.is_leaf
        if name not in ("_parameters", "_buffers", "_modules", "_flat_weights") and not computed:
            vars(module)[name] = value
