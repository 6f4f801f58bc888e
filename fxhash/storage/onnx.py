"""ONNX files that hold the factors of a model instead of its weights."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fxhash.errors import CheckpointError, TransformError, shown
from fxhash.lowering.factor_store import find_factor_store
from fxhash.passes.arrange_constants import arrange_constants
from fxhash.printable import shortened
from fxhash.smh.checks import check_module
from fxhash.storage.atomic import replacing
from fxhash.storage.onnx_graph import remove_zero_biases
from fxhash.storage.paths import PathLike, read_target
from fxhash.transformed import transformed_parts, with_parts


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
    given: object = inputs
    if isinstance(given, Tensor):
        raise TransformError("inputs is a tensor: give a tuple of example arguments, (x,) for a single one")
    if not isinstance(inputs, tuple):
        raise TransformError(f"inputs={shown(inputs)} is no tuple of example arguments, such as (torch.zeros(1, 8),)")
    target = read_target(path, ".onnx")
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            _require_inputs(model.eval(), inputs)
            with _arranged(model) as arranged:
                # Without the exporter's optimiser, which multiplies small factors and stores what they give.
                program = torch.onnx.export(
                    arranged.eval(), inputs, dynamo=True, optimize=False, verbose=False, dynamic_shapes=dynamic_shapes
                )
    except _InputsError as error:
        raise TransformError(str(error)) from error.__cause__
    except Exception as error:  # Whatever dynamo or the exporter raises for such a model.
        raise TransformError(
            f"torch.onnx.export can't take this {type(model).__name__} with these arguments: {_reason(error)}. Write "
            "that part of the model's forward otherwise, or choose other dynamic_shapes"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    assert program is not None
    # Stack traces of every operator, which are larger than the factors of a small model.
    ClearMetadataAndDocStringPass()(program.model)
    remove_zero_biases(program.model)
    try:
        with replacing(target) as temporary:
            program.save(str(temporary), external_data=False)
    except OSError as error:
        raise CheckpointError(f"{path} can't be written: {error}") from error


@contextmanager
def _arranged(model: nn.Module) -> Iterator[nn.Module]:
    """A model whose lowered parts are written for ONNX Runtime, for a while; it shares all values."""
    lowered = [part for part in transformed_parts(model).values() if find_factor_store(part) is not None]
    arranged: dict[nn.Module, nn.Module] = {part: arrange_constants(part).graph_module for part in lowered}
    try:
        yield with_parts(model, arranged)
    finally:
        with_parts(model, {other: part for part, other in arranged.items()})


class _InputsError(TransformError):
    """The model itself can't be called with the example inputs."""


def _require_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Call the model, whose own error says more than what the exporter makes of it."""
    try:
        model(*inputs)
    except Exception as error:  # Whatever the model raises for such arguments.
        raise _InputsError(
            f"this {type(model).__name__} can't be called with inputs={shown(tree_map(_Shown, inputs))}: "
            f"{_reason(error)}. Give "
            "arguments that its forward takes"
        ) from error


class _Shown:
    """Shows a tensor by its type and sizes, in the place of its numbers."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        if not isinstance(self._value, Tensor):
            return repr(self._value)
        return f"{str(self._value.dtype).removeprefix('torch.')} {'x'.join(map(str, self._value.shape))}".strip()


def _reason(error: BaseException) -> str:
    """What went wrong first, in a line: the exporter wraps an error several times, and tells long stories about it."""
    while error.__cause__ is not None and str(error.__cause__).strip():
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {shortened(lines[0].rstrip('.'), 300)}" if lines else type(error).__name__
