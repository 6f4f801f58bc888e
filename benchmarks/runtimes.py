"""The forms of a model that other runtimes run, for `deploy.py`: ONNX Runtime, AOTInductor and OpenVINO.

Each form is a call without arguments on fixed inputs, with its bytes on disk and resident. OpenVINO is left out, with a
line, where it is not installed (`pip install openvino`).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

import fxhash
from fxhash.compare.candidates import Candidate, dense_candidate
from fxhash.compare.onnx_candidates import onnx_candidate, write_compressed, write_dense, write_int8

RUNTIMES = ("onnxruntime", "aotinductor", "openvino")


@dataclass(frozen=True)
class Form:
    """A form of a model in a runtime.

    Attributes:
        call: one call.
        disk_bytes: size of what is shipped.
        resident_bytes: bytes of weights while it is loaded; None where the runtime doesn't say.
    """

    call: Callable[[], object]
    disk_bytes: int
    resident_bytes: int | None


class Forms:
    """Builds the forms of one model on fixed inputs; what can't be built is left out, with a line.

    Args:
        name: of the model, for those lines.
        inputs: of a call.
        threads: of a call.
        folder: where files are written.
        runtimes: those of `RUNTIMES` that are asked for.
    """

    def __init__(
        self, name: str, inputs: tuple[Tensor, ...], threads: int, folder: Path, runtimes: tuple[str, ...]
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.threads = threads
        self.folder = folder
        self.runtimes = set(runtimes)
        self.forms: dict[str, Form] = {}
        if "openvino" in self.runtimes and importlib.util.find_spec("openvino") is None:
            print(f"{name}: OpenVINO is not installed and left out", file=sys.stderr)
            self.runtimes.remove("openvino")

    def add_dense(self, model: nn.Module) -> None:
        """The dense model: in eager mode, and in each runtime, in 8 bits too."""
        like = dense_candidate(model, self.inputs, self.folder)
        self.forms["dense"] = Form(like.call, like.file_bytes["float32"], like.resident_bytes)
        dense, int8 = self.folder / "dense.onnx", self.folder / "int8.onnx"
        write_dense(model, self.inputs, dense)
        self._in_onnx_runtime("dense", dense, like)
        self._try("dense, ONNX Runtime, int8", lambda: self._int8(dense, int8, like))
        self._in_openvino("dense", dense)
        if int8.exists():
            self._in_openvino("dense, int8", int8)
        self._in_aotinductor("dense", model)

    def add_compressed(self, label: str, transformed: fx.GraphModule) -> None:
        """A transformed model: lowered in eager mode, and in each runtime."""
        lowered = fxhash.lower_for_deploy(transformed)
        like = dense_candidate(lowered, self.inputs, self.folder)
        saved, plan = self.folder / "saved.safetensors", lowered.smh_factors.plan
        fxhash.save(transformed, saved)
        resident = (like.resident_bytes or 0) + plan.peak_bytes - plan.cached_bytes
        self.forms[label] = Form(like.call, saved.stat().st_size, resident)
        path = self.folder / f"{label}.onnx".replace(" ", "_").replace(",", "").replace("%", "")
        write_compressed(transformed, self.inputs, path)
        self._in_onnx_runtime(label, path, like)
        self._in_onnx_runtime(label, path, like, keeps_factors=True)
        self._in_openvino(label, path)
        self._in_aotinductor(label, lowered)

    def _in_onnx_runtime(self, label: str, path: Path, like: Candidate, keeps_factors: bool = False) -> None:
        if "onnxruntime" in self.runtimes:
            name = f"{label}, ONNX Runtime" + (", small" if keeps_factors else "")
            self._try(name, lambda: self._onnx(path, like, keeps_factors))

    def _int8(self, dense: Path, path: Path, like: Candidate) -> Form:
        write_int8(dense, self.inputs, path)
        return self._onnx(path, like)

    def _onnx(self, path: Path, like: Candidate, keeps_factors: bool = False) -> Form:
        made = onnx_candidate(path, like, self.inputs, self.threads, "file", keeps_factors)
        return Form(made.call, made.file_bytes["file"], made.resident_bytes)

    def _in_openvino(self, label: str, path: Path) -> None:
        if "openvino" in self.runtimes:
            self._try(f"{label}, OpenVINO", lambda: openvino_form(path, self.inputs, self.threads))

    def _in_aotinductor(self, label: str, model: nn.Module) -> None:
        if "aotinductor" in self.runtimes:
            package = self.folder / f"{len(self.forms)}.pt2"
            self._try(f"{label}, AOTInductor", lambda: aotinductor_form(model, self.inputs, package))

    def _try(self, label: str, build: Callable[[], Form]) -> None:
        try:
            form = build()
            form.call()
            self.forms[label] = form
        except Exception as error:  # Whatever an exporter or a runtime raises.
            first = str(error).strip().splitlines() or [""]
            print(f"{self.name} {label}: left out, {type(error).__name__}: {first[0][:200]}", file=sys.stderr)


def openvino_form(path: Path, inputs: tuple[Tensor, ...], threads: int) -> Form:
    """The model of an ONNX file in OpenVINO, in float32: by default it computes in bfloat16 where that is fast."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    arrays = [tensor.numpy() for tensor in inputs]
    return Form(lambda: request.infer(arrays), path.stat().st_size, None)


def aotinductor_form(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Form:
    """The model compiled ahead of time, for these sizes."""
    with torch.no_grad():
        program = torch.export.export(model, inputs)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    loaded = torch._inductor.aoti_load_package(str(path))
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}

    def call() -> object:
        with torch.inference_mode():
            return loaded(*inputs)

    return Form(call, path.stat().st_size, sum(tensors.values()))


def facts(form: Form) -> Mapping[str, int | None]:
    """What a record says of a form beside its latency."""
    return {"disk_bytes": form.disk_bytes, "resident_bytes": form.resident_bytes}
