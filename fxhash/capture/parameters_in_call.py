"""What a call of an opaque submodule does to the weights that it is given: nothing that would be lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fxhash.capture.replicas import Owners
from fxhash.errors import TransformError


@contextmanager
def as_parameters(
    module: nn.Module,
    names: Sequence[tuple[str, ...]],
    owners: Owners,
    parameters: Sequence[Tensor],
    looks_at_weights: Callable[[], bool],
) -> Iterator[None]:
    """Let weights be parameters to all that asks while a module is called, and make sure that it changes none.

    Args:
        module: which is called, or of which a replica is.
        names: the names in it of each parameter.
        owners: the modules that hold each parameter during the call.
        parameters: the weights.
        looks_at_weights: whether the module may do more to them than multiply by them.

    Raises:
        TransformError: if one was changed or replaced, which a generated one can't keep.
    """
    if torch.compiler.is_compiling():
        yield
        return
    # An embedding of this kind scales rows of its weight down, the same rows each time.
    scales = any(getattr(each, "max_norm", None) is not None for each in module.modules())
    versions = [None if scales or each.is_inference() else each._version for each in parameters]
    # Not every change is counted: not by `.data`, not of tensors of inference mode.
    verifies = not scales and looks_at_weights()
    values = [each.detach().clone() if verifies else None for each in parameters]
    for parameter in parameters:
        parameter._is_param = True
    try:
        yield
    except ValueError as error:
        if "non-leaf Tensor" not in str(error):
            raise
        raise TransformError(
            f"the forward of {type(module).__name__} assigns a weight to an attribute or a list of parameters, which "
            "a generated weight can't be: read it where it is used, or exclude it"
        ) from error
    changed = [
        known_as[0]
        for known_as, parameter, version, value, group in zip(names, parameters, versions, values, owners, strict=True)
        if (version is not None and parameter._version != version)
        or (value is not None and not torch.equal(parameter.detach(), value))
        or any(dict.get(owner._parameters, name) is not parameter for owner, name in group)
    ]
    if changed:
        raise TransformError(
            f"the forward of {type(module).__name__} changes its parameter {changed[0]!r}, which a generated weight "
            "can't keep: exclude it from the transform"
        )
