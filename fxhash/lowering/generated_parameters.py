"""The parameters of a lowered module as its code sees them in a call: those that are generated are there, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


class GeneratedParameters(dict[str, Any]):
    """A module's table of parameters, in which some are generated when they are read.

    A lowered module lacks the parameters that it computes. Code that calls it may look for them in its table:
    `parameters()`, `state_dict()` and `functional_call` do, and the latter sets others there.

    Args:
        own: what the module holds, or was given for a call.
        order: names of all of its parameters, as in the original module.
        sources: what computes each of those that the module lacks.
    """

    def __init__(
        self, own: Mapping[str, Any], order: Sequence[str], sources: Mapping[str, Callable[[], Tensor]]
    ) -> None:
        super().__init__(own)
        self._order = order
        self._sources = sources

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._sources

    def __getitem__(self, name: str) -> Any:
        if super().__contains__(name):
            return super().__getitem__(name)
        parameter = self._sources[name]()
        # So that it is a parameter to all that ask.
        parameter._is_param = True
        return parameter

    def __iter__(self) -> Iterator[str]:
        added = [name for name in dict.keys(self) if name not in self._order]
        return iter([*filter(self.__contains__, self._order), *added])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def keys(self) -> Any:
        """All names, in the order of the original module."""
        return list(self)

    def values(self) -> Any:
        """All parameters, generated one after the other."""
        return (self[name] for name in self)

    def items(self) -> Any:
        """Names and parameters, generated one after the other."""
        return ((name, self[name]) for name in self)

    def get(self, name: str, default: Any = None) -> Any:
        """The parameter, or `default` if there is none of this name."""
        return self[name] if name in self else default  # noqa: SIM401


def given_parameter(parameters: Mapping[str, Any], name: str) -> Tensor | None:
    """What the module was given for a call under a name; None where the parameter is to be generated."""
    assert isinstance(parameters, dict)
    given: Tensor | None = dict.get(parameters, name)
    return given
