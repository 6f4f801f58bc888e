"""Names in a graph module: what is free, what is ours, and what a name was in the original model."""

from __future__ import annotations

from torch import nn

# Where an opaque submodule lies below the path of the module that it wraps. Beside it lie the parameters that it is
# passed: they can't lie on either of the two, which would then keep them. Both names are in the state dicts of saved
# files, and so stay as they are.
OPAQUE_PART = "opaque_part"
WRAPPED_MODULE = "wrapped_module"
# Where the `meta` of a traced graph module says how it was captured.
CAPTURED = "fxhash.captured"
# Where the `meta` of a model that is lowered for training has the graph of the transformed model.
TRANSFORMED = "fxhash.transformed"


def free_name(module: nn.Module, name: str) -> str:
    """`name`, with underscores behind it until `module` has no such attribute."""
    while hasattr(module, name):
        name += "_"
    return name


def original_name(name: str) -> str:
    """The name in the original model of a parameter or buffer of a traced one.

    Example:
        >>> original_name("encoder.attention.opaque_part.wrapped_module.bias")
        'encoder.attention.bias'
    """
    return ".".join(atom for atom in name.split(".") if atom not in (OPAQUE_PART, WRAPPED_MODULE))


def joined(path: str, name: str) -> str:
    """The name in a model of what a module at a path names.

    Example:
        >>> joined("backbone", "conv.weight"), joined("", "conv.weight")
        ('backbone.conv.weight', 'conv.weight')
    """
    return f"{path}.{name}" if path else name
