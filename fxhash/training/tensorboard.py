"""Curves of a run for TensorBoard, whose package is an extra of its own."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from fxhash.errors import TrainingError


def require_tensorboard() -> None:
    """Check that curves can be written, before anything is.

    Lightning writes them with `tensorboard`, or with `tensorboardX` where that alone is installed.

    Raises:
        TrainingError: if neither can be imported; it says what to install.
    """
    for module in ("torch.utils.tensorboard", "tensorboardX"):
        with suppress(ImportError):
            import_module(module)
            return
    raise TrainingError('tensorboard is not installed; to get it: pip install "fxhash[tensorboard]"')
