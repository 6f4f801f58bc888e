"""Reference models for small images, such as those of CIFAR and MNIST: by name, one family a file.

All take images of 32x32 or 28x28 pixels, and most take larger ones. All have the options `num_classes`, 10 by
default, and `in_channels`, 3 by default. Networks that were made for ImageNet have another stem, and strides that
keep more of a small image; their layers are torchvision's wherever it has them. Those models need the extra
`zoo`; importing this module does not.

Example:
    >>> from fxhash import zoo
    >>> model = zoo.create("resnet20", num_classes=100)
    >>> zoo.list("dpn")
    ('dpn26', 'dpn92', 'dpn98')
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from fxhash.errors import FxhashError, close_matches, shown
from fxhash.zoo import (
    convnext,
    densenet,
    dpn,
    efficientnet,
    googlenet,
    lenet,
    mobilenet,
    mobilenet_v2,
    pnasnet,
    preact_resnet,
    regnet,
    resnet,
    resnet_imagenet,
    resnext,
    senet,
    shufflenet,
    shufflenet_v2,
    vgg,
    vit,
)
from fxhash.zoo.building import MissingTorchvisionError, OptionError

__all__ = ["MissingTorchvisionError", "OptionError", "UnknownModelError", "create", "list"]

_FAMILIES: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "convnext": convnext.MODELS,
    "densenet": densenet.MODELS,
    "dpn": dpn.MODELS,
    "efficientnet": efficientnet.MODELS,
    "googlenet": googlenet.MODELS,
    "lenet": lenet.MODELS,
    "mobilenet": mobilenet.MODELS,
    "mobilenet_v2": mobilenet_v2.MODELS,
    "pnasnet": pnasnet.MODELS,
    "preact_resnet": preact_resnet.MODELS,
    "regnet": regnet.MODELS,
    "resnet": resnet.MODELS | resnet_imagenet.MODELS,
    "resnext": resnext.MODELS,
    "senet": senet.MODELS,
    "shufflenet": shufflenet.MODELS,
    "shufflenet_v2": shufflenet_v2.MODELS,
    "vgg": vgg.MODELS,
    "vit": vit.MODELS,
}
_FACTORIES = {name: factory for family in _FAMILIES.values() for name, factory in family.items()}


class UnknownModelError(FxhashError):
    """The zoo has no model or family of the name asked for; the message has close matches and says how to list all."""


def list(family: str | None = None) -> tuple[str, ...]:
    """Return the names that `create` knows, family by family.

    Args:
        family: return those of this family alone, such as "resnet".

    Raises:
        UnknownModelError: if there is no such family; the message lists the families.
    """
    if family is None:
        return tuple(_FACTORIES)
    if not isinstance(family, str) or family not in _FAMILIES:
        raise UnknownModelError(
            f"the zoo has no family {shown(family)}{close_matches(family, _FAMILIES)}; it has {', '.join(_FAMILIES)}"
        )
    return tuple(_FAMILIES[family])


def create(name: str, **options: Any) -> nn.Module:
    """Build the model called `name` with freshly initialised weights.

    Args:
        name: one of `list()`.
        **options: passed to the family's factory, which describes them: `num_classes` and `in_channels` for all
            families, and such as `width` for `fxhash.zoo.resnet.resnet`.

    Raises:
        UnknownModelError: if there is no such model.
        MissingTorchvisionError: if the model is adapted from torchvision, which is not installed.
        OptionError: if an option is below 1, or otherwise impossible; it is a `ValueError` too.
        TypeError: if an option is not an `int` and has to be, or if the family has no such option.
    """
    factory = _FACTORIES.get(name) if isinstance(name, str) else None
    if factory is None:
        raise UnknownModelError(
            f"the zoo has no model {shown(name)}{close_matches(name, _FACTORIES)}; fxhash.zoo.list() returns the "
            f"names of all {len(_FACTORIES)}"
        )
    return factory(**options)
