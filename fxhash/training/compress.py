"""A callback that compresses the model of somebody's own LightningModule."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import fx, nn

import fxhash
from fxhash.errors import TrainingError, close_matches
from fxhash.smh.checks import check_fraction
from fxhash.storage.paths import read_path
from fxhash.transformed import transformed_parts

_FILE = "model.safetensors"
_OPTIONS = tuple(inspect.signature(fxhash.transform).parameters)[2:]


class Compress(Callback):
    """Transforms a submodule of a LightningModule at setup, and saves and lowers it when training has ended.

    The optimizers are made after setup, so `self.parameters()` in `configure_optimizers` are the compressed ones, and
    checkpoints hold them. The submodule stays the transformed one; the lowered one is `lowered`.

    Args:
        compress: as of `fxhash.transform`.
        module: path of the submodule, such as `"model"`; the only one that is trained if omitted. It must be there
            before setup: built in `__init__`. If it is compiled, it is no more: compile the LightningModule instead.
        path: file to write the transformed model to; `model.safetensors` in the folder of the logger, or in
            `default_root_dir` without one, if omitted. It is written when training ends without an error.
        dtype: type to store the factors in, as of `fxhash.save`.
        **options: further arguments of `fxhash.transform`, such as `exclude` and `seed`.

    Attributes:
        transformed: the transformed submodule; None before setup.
        lowered: what `fxhash.lower_for_deploy` makes of it, on the same device; None before training has ended.

    Raises:
        PlanError: if `compress` is no fraction.
        TrainingError: for an unknown option; at setup, if the submodule is not there, or it takes naming.
        FxhashError: at setup, as of `fxhash.transform`; at the end, as of `fxhash.save` and `fxhash.lower_for_deploy`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = Compress(compress=0.1, exclude=r"^head")
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        compress: float = 0.1,
        *,
        module: str | None = None,
        path: str | os.PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        check_fraction(compress)
        for name in options:
            if name not in _OPTIONS:
                raise TrainingError(
                    f"fxhash.transform has no option {name!r}{close_matches(name, _OPTIONS)}: give some of "
                    f"{', '.join(_OPTIONS)}"
                )
        self.compress = compress
        self.module = module
        self.path = path
        self.dtype = dtype
        self.options = options
        self.transformed: fx.GraphModule | None = None
        self.lowered: nn.Module | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the transformed submodule in the place of the original, unless that is done."""
        if stage == "fit" and self.path is not None:
            _check_file(read_path(self.path))
        path = self._path_in(pl_module)
        found = pl_module.get_submodule(path)
        if "" not in transformed_parts(found):
            found = fxhash.transform(found, self.compress, **self.options)
            pl_module.set_submodule(path, found)
        assert isinstance(found, fx.GraphModule)
        self.transformed = found

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the transformed submodule, in the first process, and lower it, in all of them."""
        assert self.transformed is not None
        # In all processes: the folder of the logger is what the first of them says.
        folder = trainer.log_dir or trainer.default_root_dir
        path = Path(folder) / _FILE if self.path is None else read_path(self.path)
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            fxhash.save(self.transformed, path, dtype=self.dtype)
        self.lowered = fxhash.lower_for_deploy(self.transformed)

    def _path_in(self, pl_module: LightningModule) -> str:
        """The path of the submodule to compress."""
        named = dict(pl_module.named_modules())
        if self.module is not None:
            if not self.module or self.module not in named:
                raise TrainingError(
                    f"{type(pl_module).__name__} has no submodule {self.module!r} at setup"
                    f"{close_matches(self.module, filter(None, named))}: build it in __init__"
                )
            return self.module
        trained = [
            name
            for name, child in pl_module.named_children()
            if any(parameter.requires_grad for parameter in child.parameters())
        ]
        if len(trained) != 1:
            raise TrainingError(
                f"{type(pl_module).__name__} has {len(trained)} submodules that are trained"
                f"{': ' + ', '.join(trained) if trained else ''}. Put the layers to compress into one, built in "
                "__init__, and name it: Compress(module='model')"
            )
        return trained[0]


def _check_file(path: Path) -> None:
    """Raise TrainingError, before an hour of training, if a file could not be written."""
    if path.is_dir():
        raise TrainingError(f"path={str(path)!r} is a folder: give the path of a file, such as 'model.safetensors'")
    existing = next(parent for parent in path.parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise TrainingError(f"path={str(path)!r} can't be written: {str(existing)!r} is no folder to write to")
