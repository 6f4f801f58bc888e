"""Compare one model in its forms: everything is built first, then all forms are timed side by side."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from fxhash.capture.copy_model import copy_model
from fxhash.compare.calling import doubled, failure
from fxhash.compare.candidates import (
    Candidate,
    Compressed,
    compressed,
    dense_candidate,
    dynamic_int8_candidate,
    lowered_candidate,
)
from fxhash.compare.onnx_candidates import (
    onnx_candidate,
    onnx_runtime_is_installed,
    write_compressed,
    write_dense,
    write_int8,
)
from fxhash.compare.recommendation import recommend
from fxhash.compare.rows import Comparison, OpaquePart, Row
from fxhash.errors import TransformError, described
from fxhash.printable import shortened
from fxhash.training.latency import alternating_seconds
from fxhash.training.report.comparison import percent
from fxhash.version import __version__

_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 1000


def compare(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    compress: Sequence[float],
    *,
    target: str = "",
    threads: int | None = None,
    seconds: float = 2.0,
    with_onnx: bool | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Compare a model's forms: dense, with weights in 8 bits, and compressed to each of some sizes.

    Args:
        model: any model, on the CPU; it is left untouched, and compared in float32.
        inputs: arguments of its forward; latency is that of a call with these.
        compress: sizes, as of `fxhash.transform`.
        target: how the model is called in the result; its class if omitted.
        threads: of each call; torch's number if omitted.
        seconds: to spend on the calls of each form.
        with_onnx: whether to run the forms in ONNX Runtime too, and to quantize with it; where it is installed if
            omitted.
        progress: is called with what is being done.

    Raises:
        FxhashError: if the model can't be called with these inputs, or can't be compressed; nothing is timed then.
    """
    model = copy_model(model).float().eval()
    problem = failure(model, inputs)
    shapes = tuple(f"{str(each.dtype).removeprefix('torch.')} {'x'.join(map(str, each.shape))}" for each in inputs)
    if problem:
        raise TransformError(
            f"{target or type(model).__name__} can't be called with {', '.join(shapes)}: {shortened(problem)}. Give "
            "--input SHAPE, once for each input"
        )
    threads = threads or torch.get_num_threads()
    notes: list[str] = []
    with _threads(threads), TemporaryDirectory() as folder:
        examples = doubled(model, inputs)
        sizes = []
        for fraction in compress:
            progress(f"compressing to {percent(fraction)}")
            sizes.append(compressed(model, fraction, examples))
        build = _Builder(model, inputs, sizes, threads, Path(folder), notes, progress)
        candidates = build.all(onnx_runtime_is_installed() if with_onnx is None else with_onnx)
        progress(f"timing {len(candidates)} forms side by side")
        rows = measure(candidates, seconds)
    summary = sizes[0].summary
    parts = tuple(
        OpaquePart(part.path, part.reason, part.weights / summary.plan.hashed_before) for part in summary.opaque_parts
    )
    return Comparison(
        target or type(model).__name__,
        shapes,
        threads,
        describe_machine(),
        rows,
        summary.captured,
        parts,
        tuple(notes),
        recommend(rows, parts, any(size.summary.plan.kernel_parameters for size in sizes)),
    )


def measure(candidates: Sequence[Candidate], seconds: float) -> tuple[Row, ...]:
    """Time candidates alternately; the first is what the others are compared with.

    Args:
        candidates: one or more.
        seconds: for the calls of each.
    """
    calls = [candidate.call for candidate in candidates]
    started = time.perf_counter()
    alternating_seconds(calls, rounds=1)
    rounds = int(seconds * len(calls) / (time.perf_counter() - started))
    times = alternating_seconds(calls, min(max(rounds, _FEWEST_ROUNDS), _MOST_ROUNDS))
    return tuple(
        Row(
            candidate.method,
            candidate.runtime,
            candidate.compress,
            candidate.parameters,
            candidate.file_bytes,
            candidate.multiply_adds,
            candidate.resident_bytes,
            1e3 * statistics.median(own),
            statistics.median(each / dense for each, dense in zip(own, times[0], strict=True)),
        )
        for candidate, own in zip(candidates, times, strict=True)
    )


def describe_machine() -> str:
    """The machine and the versions, in one line."""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; fxhash {__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}"
    )


class _Builder:
    """Builds the forms of a model; what can't be built is noted."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        sizes: Sequence[Compressed],
        threads: int,
        folder: Path,
        notes: list[str],
        progress: Callable[[str], None],
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.sizes = sizes
        self.threads = threads
        self.folder = folder
        self.notes = notes
        self.progress = progress

    def all(self, with_onnx: bool) -> list[Candidate]:
        """The forms, in the order of the table."""
        dense = dense_candidate(self.model, self.inputs, self.folder)
        lowered = [lowered_candidate(size, self.inputs, self.folder) for size in self.sizes]
        if not with_onnx:
            how = "as asked" if onnx_runtime_is_installed() else 'to get it: pip install "fxhash[onnx]"'
            self.notes.append(f"ONNX Runtime was left out ({how}).")
            return [dense, *self._dynamic_int8(), *lowered]
        dense_file = self.folder / "dense.onnx"
        dense_onnx = self._in_onnx_runtime(dense, "dense", partial(write_dense, self.model, self.inputs, dense_file))
        int8 = []
        if dense_onnx:
            int8 = self._in_onnx_runtime(
                replace(dense, method="int8", multiply_adds=None),
                "int8",
                partial(write_int8, dense_file, self.inputs, self.folder / "int8.onnx"),
                "int8",
            )
        if int8:
            self.notes.append(
                "int8 is static quantization by ONNX Runtime (QDQ, by channel), calibrated on the inputs above: real "
                "use needs real data."
            )
        rows = [dense, *dense_onnx, *(int8 or self._dynamic_int8())]
        for size, candidate in zip(self.sizes, lowered, strict=True):
            name = f"compressed_{size.compress}"
            path = self.folder / f"{name}.onnx"
            rows.append(candidate)
            write = partial(write_compressed, size.transformed, self.inputs, path)
            rows += self._in_onnx_runtime(candidate, name, write)
        return rows

    def _in_onnx_runtime(
        self, like: Candidate, name: str, write: Callable[[], None], stored_as: str = "float32"
    ) -> list[Candidate]:
        """A form in ONNX Runtime; none if its file can't be made or run, which is noted."""
        form = like.method if like.compress is None else f"{like.method} {percent(like.compress)}"
        self.progress(f"{form}: for ONNX Runtime")
        try:
            write()
            return [onnx_candidate(self.folder / f"{name}.onnx", like, self.inputs, self.threads, stored_as)]
        except Exception as error:  # Whatever the exporter, the quantizer and the runtime raise.
            self.notes.append(f"{form} in ONNX Runtime was left out: {shortened(described(error), 200)}.")
            return []

    def _dynamic_int8(self) -> list[Candidate]:
        found = dynamic_int8_candidate(self.model, self.inputs, self.folder)
        if found is None:
            self.notes.append("int8 was left out: torch's own has linear and recurrent layers only, and none here.")
            return []
        self.notes.append("int8 is torch's own dynamic quantization: of linear and recurrent layers only.")
        return [found]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute on that many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
