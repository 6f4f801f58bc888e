"""Opaque submodules: called as a whole, with parameters that come from outside."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fxhash.capture.copy_model import copy_model
from fxhash.capture.inspection import looks_at_weights, tells_modules_apart
from fxhash.capture.parameters_in_call import as_parameters
from fxhash.capture.reasons import Reason
from fxhash.capture.references import Reference, references_of
from fxhash.capture.replicas import Owners, owners_of, replicate, set_parameters, take_over
from fxhash.errors import TransformError
from fxhash.smh.regeneration import regenerating

# Modules that are reached by more than their parents hold parameters themselves while they run: one thread at a time.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


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

    Attributes:
        is_reached_otherwise: whether anything but the parents of the modules in it refers to them, or tells them
            apart, so that replicas would be missed.

    Raises:
        TransformError: if the module keeps a parameter where it can't be replaced, such as in a tuple.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[tuple[str, ...]],
        reason: Reason,
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.wrapped_module = module
        self.names = tuple(names)
        self.reason = reason
        self.defaults = dict(defaults)
        # By the modules that hold them, not by path: a forward may put its modules elsewhere.
        self._owners = owners_of(module, self.names)
        # A generated weight has no sparse gradient.
        self._were_sparse = [name for group in self.names for name in group if _is_sparse(module, name)]
        self._set_sparse(module, False)
        self._looks: bool | None = None
        self._kept = _kept_parameters(module, self.names)
        # Found once, not at each call: it takes a walk over all attributes and code of the module.
        self.is_reached_otherwise = bool(self._kept) or _is_reached_otherwise(module)
        set_parameters(self._owners, [None] * len(self.names))
        self._set_kept([None] * len(self.names))

    def forward(
        self,
        parameters: Sequence[Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        more_args: Sequence[Any] = (),
        more_kwargs: Mapping[str, Any] | Sequence[Any] = (),
    ) -> Any:
        """Call the wrapped module with `args` and `kwargs`, and `parameters` in the order of `names`.

        What a model's own `*args` and `**kwargs` collect comes as `more_args` and `more_kwargs`.

        The call runs on a replica that shares everything with the wrapped module but holds `parameters`: other threads,
        and a checkpoint that runs the module again in backward, see what they were given. A module that functions or
        containers refer to is no replica: it holds the parameters itself, and other threads wait.

        Raises:
            TransformError: if the module changes a parameter, which a generated one can't keep.
        """
        args = (*args, *more_args)
        kwargs = {name: value for name, value in kwargs.items() if value is not self.defaults.get(name, ...)}
        # Torch's interpreter, by which it exports, gives an empty list where no keywords are left to collect; and
        # older compilers can't follow other kinds of empty mappings.
        kwargs |= dict(more_kwargs)
        recurrent = any(isinstance(module, nn.RNNBase) for module in self.wrapped_module.modules())
        if torch.compiler.is_compiling() and not recurrent:
            # Older compilers can't follow replicas; calls don't meet in compiled code.
            named = {name: weight for names, weight in zip(self.names, parameters, strict=True) for name in names}
            return torch.func.functional_call(self.wrapped_module, named, args, kwargs)
        if self.is_reached_otherwise:
            with _lock, self._holding(parameters), regenerating(parameters):
                return self.wrapped_module(*args, **kwargs)
        replicas = replicate(self.wrapped_module)
        replica = replicas[id(self.wrapped_module)]
        owners = tuple(
            tuple((replicas[id(owner)], name) for owner, name in group if id(owner) in replicas)
            for group in self._owners
        )
        set_parameters(owners, parameters)
        with self._as_parameters(owners, parameters), regenerating(parameters):
            result = replica(*args, **kwargs)
        take_over(self.wrapped_module, replicas)
        return result

    def looks_at_weights(self) -> bool:
        """Whether the code of the wrapped module may do anything to its weights but multiply by them."""
        if self._looks is None:
            names = {name.rpartition(".")[2] for group in self.names for name in group}
            self._looks = looks_at_weights(self.wrapped_module, names)
        return self._looks

    @contextmanager
    def _holding(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Let the wrapped module itself hold `parameters`."""
        set_parameters(self._owners, parameters)
        self._set_kept(parameters)
        try:
            with self._as_parameters(self._owners, parameters):
                yield
        finally:
            set_parameters(self._owners, [None] * len(self.names))
            self._set_kept([None] * len(self.names))

    def _as_parameters(self, owners: Owners, parameters: Sequence[Tensor]) -> AbstractContextManager[None]:
        return as_parameters(self.wrapped_module, self.names, owners, parameters, self.looks_at_weights)

    def _set_kept(self, parameters: Sequence[Tensor | None]) -> None:
        for reference, index in self._kept:
            reference.container[reference.key] = parameters[index]

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
        set_parameters(owners_of(module, self.names), parameters)
        self._set_sparse(module, True)
        return module

    def _set_sparse(self, module: nn.Module, value: bool) -> None:
        for name in self._were_sparse:
            owner = module.get_submodule(name.rpartition(".")[0])
            assert isinstance(owner, nn.Embedding | nn.EmbeddingBag)
            owner.sparse = value

    def extra_repr(self) -> str:
        """Why the module is opaque, for `repr`."""
        return f"reason={str(self.reason)!r}"


def _is_sparse(module: nn.Module, name: str) -> bool:
    """Whether a parameter is a table of torch with sparse gradients."""
    owner = module.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.sparse


def _is_reached_otherwise(wrapped: nn.Module) -> bool:
    modules = list(wrapped.modules())
    inside = set(map(id, modules))
    return tells_modules_apart(wrapped) or any(
        id(reference.target) in inside
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
        for reference in references_of(module, with_class=False)
    )


def _kept_parameters(module: nn.Module, names: Sequence[tuple[str, ...]]) -> list[tuple[Reference, int]]:
    """Where the attributes of a module keep parameters of these names, and which."""
    held = {id(parameter): name for name, parameter in module.named_parameters(remove_duplicate=False)}
    index = {name: number for number, group in enumerate(names) for name in group}
    kept = []
    for path, each in module.named_modules():
        if isinstance(each, torch.jit.ScriptModule):
            continue
        for reference in references_of(each, with_class=False):
            name = held.get(id(reference.target), "")
            if name in index:
                where = f"{path}.{reference.path}" if path else reference.path
                if reference.container is None:
                    raise TransformError(
                        f"parameter {name!r} is also kept as {where}, where a generated weight can't replace it: "
                        "let forward read it from its module, or exclude it"
                    )
                kept.append((reference._replace(target=None), index[name]))
    return kept
