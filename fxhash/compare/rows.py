"""What a comparison finds, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxhash.training.report.comparison import percent

EAGER, ONNX_RUNTIME = "eager", "ONNX Runtime"


@dataclass(frozen=True)
class Row:
    """What is known of one form of the model.

    Attributes:
        method: `"dense"`, `"int8"` or `"fxhash"`.
        runtime: `"eager"` or `"ONNX Runtime"`.
        compress: the fraction of the parameters that was asked for; None unless the method is `"fxhash"`.
        parameters: how many it has, everything counted.
        file_bytes: size of its file, by the type that weights or factors are stored in: `"float32"`, `"bfloat16"`,
            `"int8"`. A form that has one file has one entry.
        multiply_adds: of one call: matrix products, convolutions and attention; None where they were not counted.
        resident_bytes: for weights while it is called: weights, factors, buffers, and the scratch memory that weights
            are generated into; None where that is not known.
        milliseconds: median time of a call.
        ratio: median of its time over that of the dense model in eager mode, call by call.
    """

    method: str
    runtime: str
    compress: float | None
    parameters: int
    file_bytes: Mapping[str, int]
    multiply_adds: int | None
    resident_bytes: int | None
    milliseconds: float
    ratio: float

    @property
    def name(self) -> str:
        """Such as `"dense"` or `"fxhash 10 %, ONNX Runtime"`."""
        form = self.method if self.compress is None else f"{self.method} {percent(self.compress)}"
        return form if self.runtime == EAGER else f"{form}, {self.runtime}"

    @property
    def short_name(self) -> str:
        """Such as `"dense"` or `"10 %, ONNX"`, where space is scarce."""
        form = self.method if self.compress is None else percent(self.compress)
        return form if self.runtime == EAGER else f"{form}, ONNX"


@dataclass(frozen=True)
class OpaquePart:
    """A submodule that could not be traced, so that it is called as a whole.

    Attributes:
        path: its name in the model; empty for the model itself.
        reason: why it could not be traced.
        share: the fraction of the generated weights that is in it.
    """

    path: str
    reason: str
    share: float


@dataclass(frozen=True)
class Comparison:
    """One model in several forms.

    Attributes:
        target: what was compared.
        inputs: type and sizes of each input, such as `"float32 1x3x224x224"`.
        threads: number of threads of each call.
        machine: what it was measured on, and with which versions.
        rows: the forms; the first is the dense model in eager mode.
        captured: how `fxhash` made a graph of the model.
        opaque_parts: what it could not trace.
        notes: what else the reader has to know, a sentence each: how int8 was made, what was left out and why.
        recommendation: a method and its options, in a few sentences.
    """

    target: str
    inputs: tuple[str, ...]
    threads: int
    machine: str
    rows: tuple[Row, ...]
    captured: str
    opaque_parts: tuple[OpaquePart, ...]
    notes: tuple[str, ...]
    recommendation: str
