"""How a target such as `zoo:resnet20` becomes a model."""

import importlib
import inspect
import sys
import warnings
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from fxhash.cli.errors import UsageError, describe, needs_extra
from fxhash.errors import close_matches

if TYPE_CHECKING:
    from torch import nn

TARGETS = "torchvision:NAME, zoo:NAME, package.module:factory or the path of a .safetensors file"


# Of an input, by where a model comes from.
USUAL_SHAPES = {"torchvision": [2, 3, 224, 224], "zoo": [2, 3, 32, 32]}


def build_model(target: str, with_values: bool = True) -> "nn.Module":
    """Build the model that a target names; one of torchvision or the zoo with random weights.

    Args:
        target: as in `TARGETS`, but for the path of a file.
        with_values: whether it needs values; a model of torchvision or the zoo is on the meta device otherwise.

    Raises:
        UsageError: if there is no such model, or its factory fails.
        UnknownModelError: if the zoo has no such model.
    """
    import torch

    source, colon, name = target.partition(":")
    if not (source and colon and name):
        raise UsageError(f"can't inspect {target!r}: expected {TARGETS}")
    if source == "torchvision":
        return _build_from_torchvision(name, with_values)
    if source == "zoo":
        from fxhash import zoo

        with torch.device("cpu" if with_values else "meta"):
            return zoo.create(name)
    return _build_from_factory(source, name)


def _build_from_torchvision(name: str, with_values: bool) -> "nn.Module":
    import torch

    with needs_extra("zoo"):
        from torchvision.models import get_model, get_model_builder, list_models
    known = list_models()
    if name not in known:
        raise UsageError(f"torchvision has no model {name!r}{close_matches(name, known)}")
    arguments = {"weights": None}
    # Detection and segmentation models download a trained backbone unless told not to.
    if "weights_backbone" in inspect.signature(get_model_builder(name)).parameters:
        arguments["weights_backbone"] = None
    with warnings.catch_warnings():
        # Some builders warn about how they initialise weights, which don't matter here.
        warnings.simplefilter("ignore")
        try:
            with torch.device("cpu" if with_values else "meta"):
                return get_model(name, **arguments)
        except NotImplementedError:
            # Some compute their widths with tensors.
            return get_model(name, **arguments)


def _build_from_factory(module_name: str, factory_name: str) -> "nn.Module":
    from torch import nn

    target = f"{module_name}:{factory_name}"
    # `python -m` looks in the working directory, a console script does not.
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(f"can't import {module_name!r}: {describe(error)}") from error
    try:
        factory = attrgetter(factory_name)(module)
    except AttributeError as error:
        raise UsageError(f"can't find {target!r}: {error}") from error
    try:
        model = factory()
    except Exception as error:
        raise UsageError(f"calling {target!r} without arguments failed: {describe(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{target!r} returned {type(model).__name__}, expected a torch.nn.Module")
    return model
