"""Models by name: `zoo:resnet20`, `torchvision:resnet18`, `timm:vit_tiny_patch16_224`, `package.module:factory`.

Only the last kind runs code that a name may choose freely. A name that a user types may; one that a file holds may
not, unless the user trusts its package.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import FunctionType, MappingProxyType, MethodType
from typing import TYPE_CHECKING, Any

from fxhash.errors import TargetError, close_matches, described, shown
from fxhash.trust import lies_in

if TYPE_CHECKING:
    from torch import nn

TARGETS = "torchvision:NAME, timm:NAME, zoo:NAME or package.module:factory"

_LIBRARIES = ("torchvision", "timm", "zoo")
_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())


@dataclass(frozen=True)
class Target:
    """What names a model.

    Attributes:
        source: `"torchvision"`, `"timm"`, `"zoo"`, or the name of a module.
        name: of the model, or of a function or class of the module.

    Example:
        >>> Target.parse("zoo:resnet20")
        Target(source='zoo', name='resnet20')
        >>> str(Target.parse("my.networks:build")), Target.parse("my.networks:build").is_factory
        ('my.networks:build', True)
    """

    source: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target.

        Raises:
            TargetError: if it has none of the forms in `TARGETS`.
        """
        source, _, name = text.partition(":")
        if source in _LIBRARIES:
            # Some models of timm have a tag, as in vit_base_patch16_224.augreg_in21k.
            is_target = re.fullmatch(r"[\w.-]+", name) is not None
        else:
            is_target = _is_path(source) and _is_path(name)
        if not is_target:
            raise TargetError(f"{shown(text)} names no model: give {TARGETS}")
        return cls(source, name)

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"

    @property
    def is_factory(self) -> bool:
        """Whether it names a user's own function, so that to build it is to run any code."""
        return self.source not in _LIBRARIES

    def input_sizes(self, model: nn.Module) -> tuple[int, ...] | None:
        """Channels, height and width of the images that the model usually takes; None if that is not known."""
        if self.source == "timm":
            configuration: Any = model.default_cfg
            return tuple(configuration["input_size"])
        return {"torchvision": (3, 224, 224), "zoo": (3, 32, 32)}.get(self.source)


def build_model(target: Target, options: Mapping[str, int] = MappingProxyType({})) -> nn.Module:
    """Build a model; those of torchvision, timm and the zoo have random weights, and nothing is downloaded.

    Args:
        target: which.
        options: `num_classes`, `in_channels` and `image_size`. Models of torchvision have the first alone; a factory is
            given those that it has parameters for, and no others.

    Raises:
        TargetError: if there is no such model, its library is not installed, or its factory fails.
        UnknownModelError: if the zoo has no such model.
    """
    if target.source == "zoo":
        from fxhash import zoo

        # Of all models, transformers alone are made for one size of image.
        known = {"num_classes", "in_channels"} | ({"image_size"} if target.name in zoo.list("vit") else set())
        return zoo.create(target.name, **{name: value for name, value in options.items() if name in known})
    if target.source == "torchvision":
        return _from_torchvision(target.name, options)
    if target.source == "timm":
        return _from_timm(target.name, options)
    return _from_factory(target, options)


@contextmanager
def trusting(modules: Collection[str]) -> Iterator[None]:
    """Allow factories of these modules and packages to be named by files, such as the `run.json` of a run.

    Args:
        modules: their names; what lies in a package is meant too.
    """
    before = _trusted.set((*_trusted.get(), *modules))
    try:
        yield
    finally:
        _trusted.reset(before)


def require_trust(target: Target, file: Path) -> None:
    """Refuse a factory that a file names and nobody trusts.

    Args:
        target: what the file names.
        file: its path, for the message.

    Raises:
        TargetError: unless the target is of a library, or a function or class that a module defines which `trusting`
            names, as the module does that the target is of.
    """
    if not target.is_factory:
        return
    says = f"{str(file)!r} says that its model is made by {str(target)!r}"
    if not lies_in(target.source, _trusted.get()):
        raise TargetError(f"{says}, which may be any code: if you trust it, add --trust {target.source}")
    found = _found(target)
    home = _home_of(found)
    if home is None:
        raise TargetError(f"{says}, which is no function or class but {shown(found)}")
    if not lies_in(home, _trusted.get()):
        raise TargetError(f"{says}, which {home} defines: if you trust that too, add --trust {home}")


def modules_of(target: Target) -> list[str]:
    """The modules that one trusts who builds a target: the one that it names, and the one that defines it.

    Raises:
        TargetError: if there is no such factory, or it is no function or class: a file could not name it.
    """
    if not target.is_factory:
        return []
    home = _home_of(_found(target))
    if home is None:
        raise TargetError(f"{str(target)!r} is no function or class: name a function that calls it")
    return [target.source, home]


def _home_of(found: object) -> str | None:
    """The module that defines a function or class; None for anything else."""
    if not isinstance(found, (FunctionType, MethodType, type)):
        return None
    home = getattr(found, "__module__", None)
    return home if isinstance(home, str) else None


def _is_path(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _from_torchvision(name: str, options: Mapping[str, int]) -> nn.Module:
    try:
        from torchvision.models import get_model, get_model_builder, list_models
    except ImportError as error:
        raise _missing("torchvision", 'pip install "fxhash[zoo]"', error) from error
    known = list_models()
    if name not in known:
        raise TargetError(f"torchvision has no model {name!r}{close_matches(name, known)}")
    arguments: dict[str, Any] = {"weights": None}
    # Detection and segmentation models download a trained backbone unless told not to.
    if "weights_backbone" in inspect.signature(get_model_builder(name)).parameters:
        arguments["weights_backbone"] = None
    if "num_classes" in options:
        arguments["num_classes"] = options["num_classes"]
    with warnings.catch_warnings():
        # Some builders warn about how they initialise weights, which don't matter here.
        warnings.simplefilter("ignore")
        return get_model(name, **arguments)


def _from_timm(name: str, options: Mapping[str, int]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise _missing("timm", "pip install timm", error) from error
    known = timm.list_models()
    # Anything else might be downloaded from where the name says.
    if name.partition(".")[0] not in known:
        raise TargetError(f"timm has no model {name!r}{close_matches(name, known)}")
    names = {"num_classes": "num_classes", "in_channels": "in_chans"}
    arguments = {names[option]: value for option, value in options.items() if option in names}
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:
        raise TargetError(f"timm can't build {name!r}: {described(error)}") from error


def _found(target: Target) -> Any:
    """What a target names in a module, which is imported."""
    # `python -m` looks in the working directory, a console script does not.
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(target.source)
    except Exception as error:
        raise TargetError(f"can't import {target.source!r}: {described(error)}") from error
    try:
        return attrgetter(target.name)(module)
    except AttributeError as error:
        raise TargetError(f"can't find {str(target)!r}: {error}") from error


def _from_factory(target: Target, options: Mapping[str, int]) -> nn.Module:
    from torch import nn

    factory = _found(target)
    arguments = {name: value for name, value in options.items() if _has_parameter(factory, name)}
    given = ", ".join(f"{name}={value}" for name, value in arguments.items())
    try:
        model = factory(**arguments)
    except Exception as error:
        how = f"with {given}" if given else "without arguments"
        raise TargetError(f"calling {str(target)!r} {how} failed: {described(error)}") from error
    if not isinstance(model, nn.Module):
        raise TargetError(f"{str(target)!r} returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def _has_parameter(factory: Any, name: str) -> bool:
    try:
        parameter = inspect.signature(factory).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY


def _missing(package: str, command: str, error: ImportError) -> TargetError:
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] == package:
        return TargetError(f"{package} is not installed; to get it: {command}")
    return TargetError(f"can't import {package}: {described(error)}")
