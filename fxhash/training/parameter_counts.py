"""How many trainable parameters a model has, and had before it was compressed."""

from __future__ import annotations

from torch import fx, nn

from fxhash.transformed import current_plan


def trainable_parameters(model: nn.Module) -> int:
    """Number of parameters that require gradients; one that is used twice counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def trainable_parameters_before(model: nn.Module) -> int:
    """The same of the dense model that a transformed one was made from; a dense model's own."""
    return current_plan(model).trainable_before if isinstance(model, fx.GraphModule) else trainable_parameters(model)
