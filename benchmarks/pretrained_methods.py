"""What `pretrained.py` and `pretrained_resnet.py` share: ways to make a trained model small, each a row of a record.

A weight is replaced if it requires a gradient and has two or more dimensions. Sizes are of parameters that require a
gradient: whatever of them is no such weight stays as it is, and counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from record import head
from torch import Tensor, nn

import fxhash
from fxhash.capture.calibration import Batch, collect_moments
from fxhash.smh.calibration import MomentStore
from fxhash.smh.weight_target import damped

METHODS = ("fxhash", "factors", "recovery")
# Layers with a smaller part of all weights stay as they are where each is factorized alone: at an equal fraction, the
# first convolution of a small network and its classifier would lose most of what they compute, for few bytes.
TINY = 0.005
Called = TypeVar("Called", bound=Callable[..., Tensor])


@dataclass(frozen=True)
class Record:
    """A record that is written after each row; rows of the same method and fraction are replaced, others stay.

    Attributes:
        path: the file; None for none.
        facts: what the record says of the model and the data, beside its head.
        figures: what a row says of a model.
        hidden: paths of the command that say nothing to others.
    """

    path: Path | None
    facts: Mapping[str, Any]
    figures: Callable[[Callable[..., Tensor]], Mapping[str, float]]
    hidden: Sequence[Path] = ()

    def measure(self, method: str, fraction: float, size: float, make: Callable[[], Called]) -> Called:
        """Make a model and add its row.

        Args:
            method: how it is made, in words.
            fraction: of the parameters.
            size: of the bytes in float32.
            make: makes it, which is what is timed.
        """
        start, begun = time.process_time(), time.perf_counter()
        made = make()
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - start
        row = {
            "method": method,
            "fraction": fraction,
            "bytes": round(size, 4),
            **{name: round(figure, 4) for name, figure in self.figures(made).items()},
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "peak_bytes": peak_bytes(),
        }
        print(*row.values(), sep="\t", flush=True)
        self.add(row)
        return made

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        if self.path is None:
            return
        known = json.loads(self.path.read_text())["rows"] if self.path.exists() else []
        same = (row["method"], row["fraction"])
        rows = [*(each for each in known if (each["method"], each["fraction"]) != same), row]
        record = {**head(hidden=self.hidden), **self.facts, "rows": rows}
        self.path.write_text(json.dumps(record, indent=1) + "\n")


def peak_bytes() -> int:
    """The most memory that this process took so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def add_options(parser: argparse.ArgumentParser, fractions: Sequence[float]) -> None:
    """Options of the ways that are here; `--methods` is the script's own."""
    parser.add_argument("--fraction", type=float, nargs="+", default=fractions, help="of the parameters")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0], help="CPU minutes of recovery")
    parser.add_argument("--precision", default="bf16", help="of recovery")
    parser.add_argument("--states", type=Path, help="folder in which a recovery goes on")
    parser.add_argument("--output", type=Path, help="file to write the record to")


def hidden_paths(arguments: argparse.Namespace) -> list[Path]:
    """The paths that a command names beside its record."""
    return [] if arguments.states is None else [arguments.states]


def replaced_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are replaced, by their names."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dim() >= 2
    }


@dataclass(frozen=True)
class Compression:
    """Ways to compress one model.

    Attributes:
        model: the trained one, in eval mode.
        calibration: batches of inputs.
        recovered_on: batches to recover on.
        held_out: those that recovery measures itself on; some of `recovered_on` if None.
        record: where rows go.
    """

    model: nn.Module
    calibration: Sequence[Batch]
    recovered_on: Sequence[Batch]
    held_out: Sequence[Batch] | None
    record: Record

    def measure(self, fraction: float, arguments: argparse.Namespace) -> None:
        """Rows of all ways that are asked for, at one fraction of the parameters."""
        if {"fxhash", "recovery"} & {*arguments.methods}:
            calibrated = self._measure_in_8_bits_too(
                "fxhash, calibrated", fraction, lambda: self._started(fraction, self.calibration)
            )
        if "fxhash" in arguments.methods:
            self.record.measure(
                "fxhash, of the weights alone", fraction, fraction, lambda: self._started(fraction, None)
            )
        if "recovery" in arguments.methods:
            with tempfile.TemporaryDirectory() as temporary:
                state = (arguments.states or Path(temporary)) / f"{fraction}"
                for minutes in arguments.minutes:
                    self._measure_in_8_bits_too(
                        f"fxhash, {minutes:g} CPU minutes of recovery",
                        fraction,
                        lambda minutes=minutes: self._recovered(calibrated, minutes, state, arguments.precision),
                    )
        if "factors" in arguments.methods:
            self.record.measure(
                "SVD of each layer",
                fraction,
                fraction,
                lambda: with_weights(self.model, own_factors(self.model, None, fraction)),
            )
            self.record.measure("SVD of each layer, whitened", fraction, fraction, lambda: self._whitened(fraction))

    def _measure_in_8_bits_too(self, method: str, fraction: float, make: Callable[[], nn.Module]) -> nn.Module:
        made = self.record.measure(method, fraction, fraction, make)
        self.record.measure(f"{method}, 8 bits", fraction, fraction / 4, lambda: in_8_bits(made, self.model))
        return made

    def _started(self, fraction: float, calibration: Sequence[Batch] | None) -> nn.Module:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "init='pretrained' without calibration")
            warnings.filterwarnings("ignore", category=fxhash.OpaqueWarning)
            return fxhash.transform(self.model, fraction, init="pretrained", calibration=calibration, seed=0)

    def _recovered(self, gm: nn.Module, minutes: float, folder: Path, precision: str) -> nn.Module:
        for name, parameter in gm.named_parameters():
            parameter.requires_grad_("smh_generator" in name or parameter.dim() == 1)
        recovery = fxhash.recover(
            gm,
            self.model,
            self.recovered_on,
            minutes=minutes,
            held_out=self.held_out,
            folder=folder,
            precision=precision,
            clock=time.process_time,
        )
        print(recovery)
        return recovery.model

    def _whitened(self, fraction: float) -> Callable[..., Tensor]:
        weights = replaced_weights(self.model)
        seen = collect_moments(self.model, weights, weights, self.calibration)
        return with_weights(self.model, own_factors(self.model, seen, fraction))


def in_8_bits(gm: nn.Module, model: nn.Module) -> nn.Module:
    """What is loaded after factors were stored in 8 bits."""
    with tempfile.TemporaryDirectory() as folder:
        fxhash.save(gm, Path(folder) / "model.safetensors", dtype=torch.int8)
        return fxhash.load(Path(folder) / "model.safetensors", model)


def own_factors(model: nn.Module, seen: MomentStore | None, fraction: float) -> dict[str, Tensor]:
    """Products of factors of each weight alone, by its name; of the values of the weights without moments.

    All but the `TINY` ones are factorized to an equal fraction, such that the model has as few parameters as asked for.
    """
    weights = replaced_weights(model)
    most = TINY * sum(weight.numel() for weight in weights.values())
    weights = {name: weight for name, weight in weights.items() if weight.numel() >= most}
    count = sum(weight.numel() for weight in weights.values())
    others = sum(each.numel() for each in model.parameters() if each.requires_grad) - count
    share = (fraction * (count + others) - others) / count
    state = {}
    for name, weight in weights.items():
        matrix = weight.detach().flatten(1)
        gram = None if seen is None else damped(seen[name].gram)[0]
        state[name] = factorized(matrix, gram, share).view_as(weight)
    return state


def factorized(weight: Tensor, gram: Tensor | None, fraction: float) -> Tensor:
    """A weight of so few parameters as two factors of its own, whose error counts by a Gram matrix: SVD-LLM's.

    Args:
        weight: shape `(out, length)`.
        gram: of the inputs, shape `(length, length)`; None for the identity, which makes it a truncated SVD.
        fraction: of the parameters of the weight; the rank is the largest within it, but at least 1.
    """
    out, length = weight.shape
    rank = max(int(fraction * out * length / (out + length)), 1)
    root = torch.eye(length).double() if gram is None else torch.linalg.cholesky(gram.double())
    left, values, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    product = (left[:, :rank] * values[:rank]) @ right[:rank]
    return torch.linalg.solve_triangular(root, product, upper=False, left=False).to(weight.dtype)


def with_weights(model: nn.Module, state: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """The model with other values of some of its weights, for inference."""

    @torch.no_grad()
    def called(*inputs: Tensor, **named: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(state), inputs, named)

    return called
