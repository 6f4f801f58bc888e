"""What builds a model, as a file names it: a function or class in a module, and its arguments.

A file may come from anybody, so a name in it is only text. What it names is imported if the caller says that the module
is trusted, and called if it is defined in a module that is: one that the trusted module merely imports, such as
`os.system`, is not.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxhash.errors import CheckpointError, PlanError, shown
from fxhash.printable import shortened
from fxhash.smh.bounded_json import read_json
from fxhash.trust import lies_in

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z]\w*", re.ASCII)
_LONGEST_NAME = 1000
_LONGEST_TEXT = 2**16


@dataclass(frozen=True)
class Factory:
    """What builds a model.

    Attributes:
        name: such as `"package.module:function"`.
        arguments: by name; values that JSON has.

    Raises:
        PlanError: for a name of another form, or arguments that a file can't hold.

    Example:
        >>> Factory("fxhash.zoo:create", {"name": "lenet"}).module
        'fxhash.zoo'
    """

    name: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or len(self.name) > _LONGEST_NAME or not _NAME.fullmatch(self.name):
            raise PlanError(f"factory={shown(self.name)} is no name of a function: give 'package.module:function'")
        if not isinstance(self.arguments, Mapping) or not all(isinstance(name, str) for name in self.arguments):
            raise PlanError(f"arguments={shown(self.arguments)} is no dictionary of arguments by name")
        for name, value in self.arguments.items():
            if not _is_plain(value):
                raise PlanError(
                    f"arguments[{name!r}]={shown(value)} can't be stored: give None, truth values, finite numbers, "
                    "strings, and lists and dictionaries of these"
                )
        if len(self.to_json()) > _LONGEST_TEXT:
            raise PlanError(f"factory and arguments take more than {_LONGEST_TEXT:,} characters as JSON")

    @property
    def module(self) -> str:
        """The name of the module that it is in."""
        return self.name.partition(":")[0]

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps({"name": self.name, "arguments": dict(self.arguments)})

    @classmethod
    def from_json(cls, text: str) -> Factory:
        """Read what `to_json` wrote; nothing is imported.

        Raises:
            PlanError: if the text is not that. Nothing in it is trusted.
        """
        try:
            if len(text) > _LONGEST_TEXT:
                raise PlanError(f"the factory has {len(text):,} characters, more than {_LONGEST_TEXT:,}")
            stored = read_json(text)
            return cls(**stored)
        except PlanError:
            raise
        except (ValueError, TypeError, RecursionError) as error:
            raise PlanError(f"this names no factory: {type(error).__name__}: {shortened(str(error))}") from error

    def check(self) -> None:
        """Raise PlanError unless there is such a function that takes these arguments; it is imported, not called."""
        if self.module == "__main__":
            raise PlanError(f"factory={self.name!r} is in a script, which can't be imported: move it to a module")
        try:
            inspect.signature(self._found(lambda module: True)).bind(**self.arguments)
        except CheckpointError as error:
            raise PlanError(f"factory={self.name!r} can't be used: {error}") from error
        except TypeError as error:
            raise PlanError(f"{self.name} can't be called with these arguments: {shown(str(error), 200)}") from error
        except ValueError:
            # Some classes in C have no signature.
            return

    def build(self, trust: Collection[str]) -> nn.Module:
        """Import the function, if that is allowed, and call it. The CPU's random generator is left as it was.

        Args:
            trust: names of modules or packages, or of functions such as `"package.module:function"`.

        Raises:
            CheckpointError: if it is not trusted, there is no such function, it fails, or it returns no module.
        """
        if not lies_in(self.module, trust) and self.name not in trust:
            raise CheckpointError(
                f"the file asks to call {self.name}, which is not trusted: give the model, or trust=[{self.module!r}] "
                "if you know what that runs"
            )
        function = self._found(lambda module: lies_in(module, trust) or module == self.module)
        try:
            with torch.random.fork_rng(devices=[]):
                model = function(**self.arguments)
        except Exception as error:
            raise CheckpointError(
                f"{self.name} can't be called with the arguments of the file: {type(error).__name__}: "
                f"{shortened(str(error))}"
            ) from error
        if not isinstance(model, nn.Module):
            raise CheckpointError(f"{self.name} returned {type(model).__name__}, expected a torch.nn.Module")
        return model

    def _found(self, is_allowed: Any) -> Any:
        """What the name stands for.

        Raises:
            CheckpointError: if there is none, or it is no function or class of a module that is allowed.
        """
        module, _, attribute = self.name.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise CheckpointError(
                f"{self.name} can't be imported: {type(error).__name__}: {shortened(str(error))}"
            ) from error
        home = getattr(found, "__module__", None)
        if not isinstance(found, (types.FunctionType, type)) or not isinstance(home, str) or not is_allowed(home):
            raise CheckpointError(
                f"{self.name} is no function or class that a trusted module defines"
                + (f", but one of {shortened(home, 80)}" if isinstance(home, str) else "")
            )
        return found


def stated_factory(factory: str | None, arguments: Mapping[str, Any] | None) -> Factory | None:
    """What a user says builds a model, looked for; None if nothing is said.

    Raises:
        PlanError: if there is no such function, it doesn't take the arguments, or a file can't hold them.
    """
    if factory is None:
        if arguments is not None:
            raise PlanError("arguments are those of a factory: give factory='package.module:function' with them")
        return None
    named = Factory(factory, {} if arguments is None else arguments)
    named.check()
    return named


def check_trust(trust: object) -> list[str]:
    """The names that are trusted.

    Raises:
        PlanError: unless it is a collection of strings that are not empty.
    """
    try:
        given = None if isinstance(trust, (str, bytes)) else list(trust)  # type: ignore[call-overload]
    except TypeError:
        given = None
    if given is None or not all(isinstance(name, str) and name for name in given):
        raise PlanError(f"trust={shown(trust)} is no list of the names of modules, such as ['package.module']")
    return given


def _is_plain(value: object, depth: int = 0) -> bool:
    """Whether JSON holds a value, and gives the same one back."""
    if depth > 20:
        return False
    if isinstance(value, float):
        return type(value) is float and abs(value) < float("inf")
    if type(value) is int:
        return -(2**63) <= value < 2**63
    if type(value) is list:
        return all(_is_plain(each, depth + 1) for each in value)
    if type(value) is dict:
        return all(type(name) is str and _is_plain(each, depth + 1) for name, each in value.items())
    return value is None or type(value) in (bool, str)
