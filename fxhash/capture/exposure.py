"""What a capture exposes: the parameters of a model that become values of its graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor, nn

from fxhash.capture.references import Reference, references_of
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
        holders: the `id`s of the modules that hold one of these, themselves or in a module that they reach.
        references: what each module refers to of the model, other than by its tables, by its `id`.

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
    references: Mapping[int, Sequence[Reference]]

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
        modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        parts = {*map(id, model.modules()), *(id(parameter) for _, tied in groups for parameter in tied)}
        references = {
            id(module): [each for each in references_of(module, with_class=False) if id(each.target) in parts]
            for module in modules
        }
        reach = nx.DiGraph()
        reach.add_nodes_from(map(id, modules))
        for module in modules:
            reach.add_edges_from((id(child), id(module)) for child in module.children())
            reach.add_edges_from((id(parameter), id(module)) for parameter in module.parameters(recurse=False))
            reach.add_edges_from((id(each.target), id(module)) for each in references[id(module)])
        holders = {holder for each in exposed if each in reach for holder in nx.descendants(reach, each)}
        return cls(
            model,
            parameters={names[0]: tied[0] for names, tied in groups},
            names={id(parameter): names[0] for names, tied in groups for parameter in tied},
            exposed=exposed,
            holders=frozenset(holders),
            references=references,
        )

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of one of the model's parameters, exposed or not; None for any other tensor."""
        return self.names.get(id(tensor))

    def is_held_by(self, module: nn.Module) -> bool:
        """Whether a module holds an exposed parameter, itself or in a module that it reaches."""
        return id(module) in self.holders

    def exposed_in(self, path: str) -> dict[str, tuple[str, ...]]:
        """The exposed parameters of the module at `path`: for each one's name in the model, its names in the module."""
        groups: dict[str, tuple[str, ...]] = {}
        for name, parameter in self.model.get_submodule(path).named_parameters(remove_duplicate=False):
            if id(parameter) in self.exposed:
                fqn = self.names[id(parameter)]
                groups[fqn] = (*groups.get(fqn, ()), name)
        return groups

    def reaches_outside(self, module: nn.Module) -> str | None:
        """How a module, or one nested in it, refers to a module or parameter that is not nested in it.

        Returns:
            The path of one such reference; None if there is none.
        """
        inside = {*map(id, module.modules()), *map(id, module.parameters())}
        for path, each in module.named_modules():
            for reference in self.references.get(id(each), ()):
                if id(reference.target) not in inside:
                    return f"{path}.{reference.path}" if path else reference.path
        return None
