"""Why submodules are opaque, for tests of capture."""

from __future__ import annotations

from torch import nn

from fxhash.capture.opaque import OpaqueModule


def reasons(gm: nn.Module) -> dict[str, str]:
    """The path of each opaque submodule, and why it is opaque."""
    return {path: module.reason.what for path, module in gm.named_modules() if isinstance(module, OpaqueModule)}
