"""A model as the content of an ONNX file: torch's exporter is called, and what it made is made small."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fxhash.capture.own_randomness import kept_random_state
from fxhash.errors import TransformError, shown
from fxhash.lowering.factor_store import find_factor_store
from fxhash.passes.arrange_constants import arrange_constants
from fxhash.printable import shortened
from fxhash.storage.exporter_noise import quiet
from fxhash.storage.onnx_bits import OPSET_OF_INT4, narrow, stores_of
from fxhash.storage.onnx_compact import compact, has_bodies
from fxhash.storage.onnx_functions import outline
from fxhash.storage.onnx_graph import remove_zero_biases
from fxhash.storage.onnx_names import shorten_names
from fxhash.storage.quantization import bits_of
from fxhash.transformed import transformed_parts, with_parts


def onnx_content(model: nn.Module, inputs: tuple[Any, ...], dynamic_shapes: Any, dtype: torch.dtype | None) -> bytes:
    """The content of the ONNX file of a model.

    Args:
        model: any module; its mode is as before afterwards.
        inputs: example arguments.
        dynamic_shapes: as in `torch.export.export`.
        dtype: type to store factors in, which passed `check_bits`; as they are if None.

    Raises:
        TransformError: if the exporter can't take the model or the arguments.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # Older ones have no integers of 4 bits.
    opset = OPSET_OF_INT4 if dtype is not None and bits_of(dtype) == 4 else None
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), quiet(), kept_random_state(model):
            _require_inputs(model.eval(), inputs)
            with _arranged(model) as arranged:
                # Without the exporter's optimiser, which multiplies small factors and stores what they give.
                program = torch.onnx.export(
                    arranged.eval(),
                    inputs,
                    dynamo=True,
                    optimize=False,
                    verbose=False,
                    dynamic_shapes=dynamic_shapes,
                    opset_version=opset,
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
    proto = program.model_proto
    compact(proto)
    if dtype is not None:
        initializers = program.model.graph.initializers.items()
        tensors = {name: getattr(value.const_value, "raw", None) for name, value in initializers}
        narrow(proto.graph, tensors, stores_of(model), dtype)
        if not has_bodies(proto.graph):
            outline(proto)
            shorten_names(proto.graph)
    return proto.SerializeToString()


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
