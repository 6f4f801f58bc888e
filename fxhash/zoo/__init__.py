"""Reference models by name, one family a file; none of them needs torchvision.

Example:
    >>> from fxhash import zoo
    >>> model = zoo.create("resnet20", num_classes=100)
"""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fxhash.errors import FxhashError
from fxhash.zoo.resnet import DEPTHS, resnet

__all__ = ["UnknownModelError", "create", "names"]

_FACTORIES: dict[str, Callable[..., nn.Module]] = {f"resnet{depth}": partial(resnet, depth) for depth in DEPTHS}


class UnknownModelError(FxhashError):
    """The zoo has no model of the name asked for; the message lists those it has."""


def names() -> tuple[str, ...]:
    """Return the names that `create` knows, smallest model of a family first."""
    return tuple(_FACTORIES)


def create(name: str, **options: Any) -> nn.Module:
    """Build the model called `name` with freshly initialised weights.

    Args:
        name: one of `names`.
        **options: passed to the family's factory; see `fxhash.zoo.resnet.resnet`.

    Raises:
        UnknownModelError: if there is no such model.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        close = difflib.get_close_matches(name, names())
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise UnknownModelError(f"the zoo has no model {name!r}{hint}; it has {', '.join(names())}")
    return factory(**options)
