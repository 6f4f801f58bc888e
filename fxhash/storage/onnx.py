"""ONNX files that hold the factors of a model instead of its weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from fxhash.api import lower_for_deploy
from fxhash.capture.copy_model import copy_model
from fxhash.errors import TransformError, shown
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.factor_store import find_factor_store
from fxhash.smh.checks import check_module
from fxhash.smh.generator import find_generator
from fxhash.storage.atomic import write_bytes
from fxhash.storage.onnx_bits import check_bits, read_onnx_dtype, round_, stores_of
from fxhash.storage.onnx_export import onnx_content
from fxhash.storage.paths import PathLike, read_target
from fxhash.transformed import generator_of, refuse_replaced, require_transformed, transformed_parts, unwrapped


def export_onnx(
    model: nn.Module,
    inputs: tuple[Any, ...],
    path: PathLike,
    *,
    dynamic_shapes: Any = None,
    dtype: torch.dtype | str | None = None,
) -> None:
    """Write a transformed or deployed model to one ONNX file, in eval mode.

    The file is complete or not there. By default, ONNX Runtime multiplies the factors of generated weights once, when
    it loads the file; with `InferenceSession(path, disabled_optimizers=["ConstantFolding"])` they stay factors.

    Args:
        model: any module; its mode is as before afterwards.
        inputs: example arguments.
        path: where to write; an existing file is replaced.
        dynamic_shapes: as in `torch.export.export`: sizes that stay open, such as
            `({0: torch.export.Dim("batch")},)`.
        dtype: type to store the factors in: `"int8"`, `"int4"` or `"float16"`, or the `torch.dtype` of that name; as
            they are if omitted. They are rounded as `save` rounds them: the numbers are those of the model that was
            saved with this type and loaded again, and of a model that was trained with `quantize_factors` those that
            it was trained with. A lowered model holds products of factors and scales: there, what lies midway between
            two numbers may be rounded the other way. All else, such as biases and norms, is stored as it is, as
            `save` does, and so are weights that a lowered model has cached, whose factors were not rounded. Nodes
            widen the factors again; inputs, outputs and all arithmetic have the types of the model, such as float32.
            A transformed model is rounded first, and then lowered for ONNX Runtime.

    Raises:
        TransformError: if the extra `onnx` is not installed, the exporter can't take the model or the arguments, or
            there is a `dtype` and the model has no factors.
        PlanError: for another type, or one of other bits than the factors were trained with or lowered to.
        CheckpointError: if the factors have values that the type can't hold, or the file can't be written.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise TransformError(f'{package} is not installed; to get it: pip install "fxhash[onnx]"') from error
    check_module(model)
    given: object = inputs
    if isinstance(given, Tensor):
        raise TransformError("inputs is a tensor: give a tuple of example arguments, (x,) for a single one")
    if not isinstance(inputs, tuple):
        raise TransformError(f"inputs={shown(inputs)} is no tuple of example arguments, such as (torch.zeros(1, 8),)")
    stored_in = None if dtype is None else read_onnx_dtype(dtype)
    refuse_replaced(transformed_parts(unwrapped(model)))
    target = read_target(path, ".onnx")
    content = onnx_content(
        model if stored_in is None else _rounded(model, stored_in), inputs, dynamic_shapes, stored_in
    )
    write_bytes(target, content)


def _rounded(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A lowered model as it is, and a transformed one with rounded factors, lowered for ONNX Runtime."""
    model = unwrapped(model)
    if find_factor_store(model) is None:
        if find_generator(model) is None:
            raise TransformError(
                f"this {type(model).__name__} has no factors to store in {dtype}: omit dtype=..., and quantize what is "
                "written with onnxruntime.quantization"
            )
        require_transformed(model)
        model = copy_model(model)
        for part in transformed_parts(model).values():
            round_(generator_of(part), dtype)
        model = lower_for_deploy(model, device=DeviceProfile.onnx_runtime())
    check_bits(stores_of(model), dtype)
    return model
