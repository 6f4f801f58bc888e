"""Why submodules are opaque, for tests of capture."""

from __future__ import annotations

from torch import nn

from fxhash.capture.opaque import OpaqueModule
from fxhash.capture.reasons import Reason


def reasons(gm: nn.Module) -> dict[str, str]:
    """The path of each opaque submodule, and why it is opaque."""
    return {path: reason.what for path, reason in full_reasons(gm).items()}


def full_reasons(gm: nn.Module) -> dict[str, Reason]:
    """The same, with the lines of code."""
    return {path: module.reason for path, module in gm.named_modules() if isinstance(module, OpaqueModule)}
