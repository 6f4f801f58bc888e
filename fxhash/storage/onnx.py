"""ONNX files that hold the factors of a model instead of its weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from fxhash.errors import CheckpointError, TransformError, shown
from fxhash.smh.checks import check_module
from fxhash.storage.atomic import replacing
from fxhash.storage.checkpoint import PathLike
from fxhash.storage.paths import read_path


def export_onnx(model: nn.Module, inputs: tuple[Any, ...], path: PathLike, *, dynamic_shapes: Any = None) -> None:
    """Write a transformed or deployed model to one ONNX file, in eval mode.

    The file is complete or not there. By default, ONNX Runtime multiplies the factors of generated weights once, when
    it loads the file; with `InferenceSession(path, disabled_optimizers=["ConstantFolding"])` they stay factors.

    Args:
        model: any module; its mode is as before afterwards.
        inputs: example arguments.
        path: where to write; an existing file is replaced.
        dynamic_shapes: as in `torch.export.export`: sizes that stay open, such as
            `({0: torch.export.Dim("batch")},)`.

    Raises:
        TransformError: if the extra `onnx` is not installed, or the exporter can't take the model or the arguments.
        CheckpointError: if the file can't be written.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise TransformError(f'{package} is not installed; to get it: pip install "fxhash[onnx]"') from error
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    check_module(model)
    if not isinstance(inputs, tuple):
        raise TransformError(f"inputs={shown(inputs)} is no tuple of example arguments, such as (torch.zeros(1, 8),)")
    target = read_path(path)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            # Without the exporter's optimiser, which multiplies small factors and stores what they give.
            program = torch.onnx.export(
                model.eval(), inputs, dynamo=True, optimize=False, verbose=False, dynamic_shapes=dynamic_shapes
            )
    except Exception as error:  # Whatever dynamo, the exporter or the model itself raises for such arguments.
        raise TransformError(
            f"torch.onnx.export can't take this {type(model).__name__} with these arguments: {shown(str(error), 300)}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    assert program is not None
    # Stack traces of every operator, which are larger than the factors of a small model.
    ClearMetadataAndDocStringPass()(program.model)
    try:
        with replacing(target) as temporary:
            program.save(str(temporary), external_data=False)
    except OSError as error:
        raise CheckpointError(f"{path} can't be written: {error}") from error
