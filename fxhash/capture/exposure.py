"""What a capture exposes: the parameters of a model that become values of its graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxhash.smh.parameters import scripted_parameters, tied_groups


@dataclass(frozen=True)
class Exposure:
    """A model, and which of its parameters its graph is to read as values of its own; made by `Exposure.of`.

    A tied parameter has one name here, the first one that `named_parameters()` gives it, and is exposed under that
    name if any of its names is to be exposed.

    Attributes:
        model: the model to capture, which belongs to the capture.
        parameters: each distinct parameter of the model, by its name.
        names: the name of each parameter object, by its `id`. Tied parameters may be several objects.
        exposed: the `id`s of the parameter objects to expose.
        holders: the `id`s of the modules that hold one of these, themselves or in a module nested in them.

    Example:
        >>> exposure = Exposure.of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), ["2.weight"])
        >>> exposure.exposed_in("")
        {'2.weight': ('2.weight',)}
        >>> [exposure.is_held_by(module) for module in exposure.model]
        [False, False, True]
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    names: Mapping[int, str]
    exposed: frozenset[int]
    holders: frozenset[int]

    @classmethod
    def of(cls, model: nn.Module, to_expose: Collection[str]) -> Exposure:
        """What exposing the parameters of these fully qualified names means for `model`."""
        groups, scripted = tied_groups(model), scripted_parameters(model)
        exposed = frozenset(
            id(parameter)
            for names, tied in groups
            for parameter in tied
            if any(name in to_expose for name in names) and id(parameter) not in scripted
        )
        return cls(
            model,
            parameters={names[0]: tied[0] for names, tied in groups},
            names={id(parameter): names[0] for names, tied in groups for parameter in tied},
            exposed=exposed,
            holders=frozenset(
                id(module)
                for module in model.modules()
                if not isinstance(module, torch.jit.ScriptModule)
                and any(id(parameter) in exposed for parameter in module.parameters())
            ),
        )

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of one of the model's parameters, exposed or not; None for any other tensor."""
        return self.names.get(id(tensor))

    def is_held_by(self, module: nn.Module) -> bool:
        """Whether a module holds an exposed parameter, itself or in a module nested in it."""
        return id(module) in self.holders

    def exposed_in(self, path: str) -> dict[str, tuple[str, ...]]:
        """The exposed parameters of the module at `path`: for each one's name in the model, its names in the module."""
        groups: dict[str, tuple[str, ...]] = {}
        for name, parameter in self.model.get_submodule(path).named_parameters(remove_duplicate=False):
            if id(parameter) in self.exposed:
                fqn = self.names[id(parameter)]
                groups[fqn] = (*groups.get(fqn, ()), name)
        return groups
