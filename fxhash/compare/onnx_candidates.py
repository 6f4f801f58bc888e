"""The forms of a model that ONNX Runtime runs: dense, statically quantized to 8 bits, and lowered."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from fxhash.api import lower_for_deploy
from fxhash.compare.candidates import Candidate
from fxhash.compare.rows import ONNX_RUNTIME
from fxhash.lowering.device import DeviceProfile
from fxhash.storage.onnx import export_onnx

# Pairs of a tensor and what it is quantized by.
_CALIBRATIONS = 2


def onnx_runtime_is_installed() -> bool:
    """Whether what these forms need is installed: the extra `onnx`."""
    return all(importlib.util.find_spec(package) is not None for package in ("onnx", "onnxscript", "onnxruntime"))


def write_dense(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write the dense model as ONNX, with constants and batch norms folded."""
    import onnx
    from onnxscript import optimizer

    with _quiet():
        export_onnx(model, inputs, path)
        onnx.save(optimizer.optimize(onnx.load(path)), path)


def write_compressed(transformed: fx.GraphModule, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Lower a transformed model for ONNX Runtime and write it as ONNX, which holds the factors."""
    with _quiet():
        export_onnx(lower_for_deploy(transformed, device=DeviceProfile.onnx_runtime()), inputs, path)


def write_int8(dense: Path, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Quantize an ONNX file of the dense model: weights by channel, activations by ranges on the inputs (QDQ)."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Inputs:
        """The inputs of the comparison, a few times, in the form that calibration asks for."""

        def __init__(self, feed: Mapping[str, Any]) -> None:
            self.left = [feed] * _CALIBRATIONS

        def get_next(self) -> Mapping[str, Any] | None:
            return self.left.pop() if self.left else None

    prepared = path.with_suffix(".prepared.onnx")
    with _quiet():
        quant_pre_process(str(dense), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            Inputs(_feed(_session(prepared, 1), inputs)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def onnx_candidate(
    path: Path,
    like: Candidate,
    inputs: tuple[Tensor, ...],
    threads: int,
    stored_as: str,
    keeps_factors: bool = False,
) -> Candidate:
    """The model of an ONNX file, in ONNX Runtime.

    Args:
        path: of the file.
        like: the form that it was made of.
        inputs: of a call.
        threads: of a call.
        stored_as: the type that its weights are stored in, as of `Row.file_bytes`.
        keeps_factors: whether nothing is computed when the file is loaded, so that weights take less memory.
    """
    optimized = path.with_suffix(".optimized.onnx")
    session = _session(path, threads, optimized, keeps_factors)
    feed = _feed(session, inputs)
    call = partial(session.run, None, feed)
    call()
    return replace(
        like,
        call=call,
        file_bytes={stored_as: path.stat().st_size},
        # Constants of a lowered model are folded: what is computed is no longer what was counted.
        multiply_adds=like.multiply_adds if like.method == "dense" else None,
        resident_bytes=_initializer_bytes(optimized),
        runtime=ONNX_RUNTIME,
    )


def _session(path: Path, threads: int, optimized: Path | None = None, keeps_factors: bool = False) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that go on spinning after a call would slow down whatever is called next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if keeps_factors:
        options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _feed(session: Any, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    return {expected.name: tensor.numpy() for expected, tensor in zip(session.get_inputs(), inputs, strict=True)}


def _initializer_bytes(path: Path) -> int:
    """Bytes of all that is constant in an ONNX file, weights above all."""
    import onnx

    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(path).graph.initializer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of exporters, which are about their own code."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
