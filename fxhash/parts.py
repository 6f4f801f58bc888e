"""Small leaf modules that stand in a traced graph for what `torch.fx` can't record as a node of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Where an opaque part lies below the path of the module that it wraps. Beside it lie the parameters that it is
# handed: they can't lie on the part or the module, which would then keep them.
OPAQUE_PART = "opaque_part"
WRAPPED_MODULE = "wrapped_module"


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

    Args:
        value: the tensor.
        fresh: whether the model makes it anew at each call, and so may change it in place.
    """

    value: Tensor

    def __init__(self, value: Tensor, fresh: bool) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)
        self.fresh = fresh

    def forward(self) -> Tensor:
        """The tensor, or a copy of it."""
        return self.value.clone() if self.fresh else self.value


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
        _assign(module, self.names, [None] * len(self.names))

    def forward(self, parameters: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the wrapped module with `args` and `kwargs`, and `parameters` in the order of `names`.

        The call runs on a replica that shares everything with the wrapped module but holds `parameters`: other threads,
        and a checkpoint that runs the module again in backward, see what they were given.
        """
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

    def replacing(self, layers: Mapping[nn.Module, nn.Module], names: Sequence[tuple[str, ...]]) -> OpaquePart:
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
        return OpaquePart(replicas[id(self.wrapped_module)], names, self.reason)

    def fill(self, parameters: Sequence[Tensor]) -> None:
        """Give the wrapped module parameters of its own."""
        _assign(self.wrapped_module, self.names, parameters)

    def extra_repr(self) -> str:
        """Why the part is opaque, for `repr`."""
        return f"reason={self.reason!r}"


def _assign(module: nn.Module, names: Sequence[tuple[str, ...]], parameters: Sequence[Tensor | None]) -> None:
    """Set each parameter under all of its names."""
    for group, parameter in zip(names, parameters, strict=True):
        for name in group:
            owner, _, attribute = name.rpartition(".")
            # Past nn.Module.__setattr__, which accepts nothing but an nn.Parameter under a parameter's name.
            table: dict[str, Any] = module.get_submodule(owner)._parameters
            table[attribute] = parameter
    for recurrent in module.modules():
        if isinstance(recurrent, nn.RNNBase):
            # Recurrent layers read a list of weights that is made when they are built, not their parameters.
            emptied = all(parameter is None for parameter in parameters)
            weights: list[Any] = [
                None if emptied else getattr(recurrent, name, None) for name in recurrent._flat_weights_names
            ]
            vars(recurrent)["_flat_weights"] = weights


def _replica(module: nn.Module) -> nn.Module:
    """The same module with tables of parameters, buffers and children of its own."""
    replica = object.__new__(type(module))
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


def free_name(module: nn.Module, name: str) -> str:
    """`name`, with underscores behind it until `module` has no such attribute."""
    while hasattr(module, name):
        name += "_"
    return name


def original_name(name: str) -> str:
    """The name in the original model of a parameter or buffer of a traced one.

    Example:
        >>> original_name("encoder.attention.opaque_part.wrapped_module.bias")
        'encoder.attention.bias'
    """
    return ".".join(atom for atom in name.split(".") if atom not in (OPAQUE_PART, WRAPPED_MODULE))
