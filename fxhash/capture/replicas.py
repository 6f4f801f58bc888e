"""Replicas of modules: they share everything with the original but hold parameters of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

_TABLES = ("_parameters", "_buffers", "_modules")
# For each parameter: the modules that hold it, several if it is tied, and its name in each.
Owners: TypeAlias = tuple[tuple[tuple[nn.Module, str], ...], ...]


def replicate(module: nn.Module, instead: Mapping[nn.Module, nn.Module] = MappingProxyType({})) -> dict[int, nn.Module]:
    """Replicas of a module and all modules nested in it, which are one another's children as the originals are.

    Args:
        module: the module; it is left untouched.
        instead: modules to stand for some of them instead of a replica.

    Returns:
        For each module's `id`, what stands for it.
    """
    replicas = {id(each): instead[each] if each in instead else _replica(each) for each in module.modules()}
    for replica in replicas.values():
        if isinstance(replica, torch.jit.ScriptModule):
            continue
        children = vars(replica)["_modules"]
        children.update({name: child and replicas[id(child)] for name, child in children.items()})
    return replicas


def owners_of(module: nn.Module, names: Sequence[tuple[str, ...]]) -> Owners:
    """The modules that hold parameters of these names, each with its name there."""
    places = [[name.rpartition(".") for name in group] for group in names]
    return tuple(tuple((module.get_submodule(path), name) for path, _, name in group) for group in places)


def set_parameters(owners: Owners, parameters: Sequence[Tensor | None]) -> None:
    """Set each parameter in the modules that hold it; they may be any tensors, or None."""
    for group, parameter in zip(owners, parameters, strict=True):
        for owner, name in group:
            # Past nn.Module.__setattr__, which accepts nothing but an nn.Parameter under a parameter's name.
            table: dict[str, Any] = owner._parameters
            table[name] = parameter
    for owner in {id(owner): owner for group in owners for owner, _ in group}.values():
        if isinstance(owner, nn.RNNBase):
            # Recurrent layers read a list of weights that is made when they are built, not their parameters.
            emptied = all(parameter is None for parameter in parameters)
            weights: list[Any] = [None if emptied else getattr(owner, name, None) for name in owner._flat_weights_names]
            vars(owner)["_flat_weights"] = weights


def take_over(module: nn.Module, replicas: Mapping[int, nn.Module]) -> None:
    """Give a module, and those nested in it, what a call changed on their replicas: all but their parameters."""
    modules = [each for each in module.modules() if id(each) in replicas]
    originals = {id(replicas[id(each)]): each for each in modules}
    for each in modules:
        replica = replicas[id(each)]
        if replica is each:
            continue
        children = {name: originals.get(id(child), child) for name, child in vars(replica)["_modules"].items()}
        _take_over_one(each, replica, children, set(vars(each)))


def _take_over_one(
    module: nn.Module, replica: nn.Module, children: Mapping[str, nn.Module | None], before: set[str]
) -> None:
    """Give a module alone what a call changed on its replica.

    Args:
        module: changed in place, but for its parameters.
        replica: what stood for it.
        children: what the module is to hold.
        before: names of attributes; those of them that the replica lacks were deleted.
    """
    _update(vars(module)["_modules"], children)
    _update(vars(module)["_buffers"], vars(replica)["_buffers"])
    for name in before - vars(replica).keys():
        vars(module).pop(name, None)
    for name, value in vars(replica).items():
        if name not in (*_TABLES, "_flat_weights") and not is_made_by_hook(module, name):
            vars(module)[name] = value


def _update(table: dict[str, Any], content: Mapping[str, Any]) -> None:
    """Let a table have this content; what it has before and after stays there meanwhile, for other threads."""
    if list(table) != list(content):
        for name in table.keys() - content.keys():
            table.pop(name, None)
    for name, value in content.items():
        if table.get(name) is not value:
            table[name] = value


def is_made_by_hook(module: nn.Module, name: str) -> bool:
    """Whether an attribute is a weight that the older weight norm or spectral norm makes before each call."""
    return any(f"{name}{suffix}" in module._parameters for suffix in ("_g", "_orig"))


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
    # Not what another thread adds meanwhile.
    before = set(vars(replica))
    set_parameters(tuple(((replica, name),) for name in names), parameters)
    result = replica.forward(*args, **kwargs)
    _take_over_one(module, replica, vars(replica)["_modules"], before)
    return result


def _replica(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    """The same module, maybe of another class, with tables of parameters, buffers and children of its own.

    A script module stands for itself: its tables are C++'s, and none of its parameters is ever replaced.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module
    replica = object.__new__(kind or type(module))
    vars(replica).update(vars(module))
    for table in _TABLES:
        vars(replica)[table] = dict(vars(module)[table])
    parameters_in_call = getattr(type(module), "parameters_in_call", None)
    if parameters_in_call is not None:
        vars(replica)["_parameters"] = parameters_in_call(module)
    return replica
