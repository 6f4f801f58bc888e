"""What the WebGPU build of ONNX Runtime can't read in an ONNX file, changed or refused."""

from __future__ import annotations

from pathlib import Path

import torch

from fxhash.errors import TrainingError
from fxhash.storage.atomic import replacing
from fxhash.storage.onnx_bits import read_onnx_dtype


def require_readable(dtype: torch.dtype | str | None) -> None:
    """Refuse 4 bits, which that build has nothing to widen with.

    Raises:
        TrainingError: see above.
        PlanError: for a type that factors can't be stored in.
    """
    if dtype is not None and read_onnx_dtype(dtype) == read_onnx_dtype("int4"):
        raise TrainingError("ONNX Runtime's build for WebGPU can't read int4: give dtype='int8', or omit webgpu=...")


def widen_steps(path: Path) -> None:
    """Store the steps of integers as float32, of the same values, since that build can't widen bfloat16."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
