"""What the demonstration measured, as a table, a sentence and a file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.table import Table

from fxhash.demo.work import Work
from fxhash.version import __version__

# Of latencies, on a machine that is not quite idle.
_NOISE = 0.05
# What latency is compared with, beside dense.
_RIVALS = ("folded", "narrower", "int8")


@dataclass(frozen=True)
class Result:
    """What was measured on one form of the network.

    Attributes:
        name: such as `dense`, `dense, width 5` or `fxhash 10 %, 8 bits`.
        method: `dense`, `folded`, `narrower`, `int8`, `fxhash`, or `fxhash int8` for factors in 8 bits.
        parameters: number of trainable parameters, everything counted.
        accuracy: fraction of the test images that the deployed form gets right.
        trained_accuracy: the same of the model as it was trained, before its file was written.
        file: name of its file.
        file_bytes: size of that.
        milliseconds: median time of a call with one image.
        ratio: median of that time over the dense network's, call by call.
        resident_bytes: for weights while it is called: parameters, buffers, and memory that weights are generated into.
    """

    name: str
    method: str
    parameters: int
    accuracy: float
    trained_accuracy: float
    file: str
    file_bytes: int
    milliseconds: float
    ratio: float
    resident_bytes: int


def results_table(results: Sequence[Result]) -> Table:
    """Lay the results out in a table that fits 80 columns; `explanation` is what to print below."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("form", no_wrap=True)
    for heading in ("parameters", "accuracy", "file\nkB", "latency\nms", "over\ndense", "resident\nkB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.name,
            f"{result.parameters:,}",
            f"{result.accuracy:.1%}",
            f"{result.file_bytes / 1e3:,.0f}",
            f"{result.milliseconds:.2f}",
            f"{result.ratio:.2f}",
            f"{result.resident_bytes / 1e3:,.0f}",
        )
    return table


def explanation(results: Sequence[Result], test_images: int, work: Work) -> str:
    """What the columns and names of the table mean, in lines of at most 80 characters."""
    return (
        f"accuracy: of what is deployed; standard error {100 * standard_error(results[0], test_images):.1f} points\n"
        "latency:  median for one image on one thread, and over that of dense\n"
        "resident: all that weights take during a call; fxhash was told to cache weights\n"
        f"          in up to {work.cached:.0%} of the dense bytes (memory_budget), beside its factors\n"
        "folded:   batch norms folded into convolutions, as fxhash and int8 do as well"
    )


def standard_error(result: Result, test_images: int) -> float:
    """Of an accuracy, for so many independent images."""
    return (result.accuracy * (1 - result.accuracy) / test_images) ** 0.5


def conclusion(results: Sequence[Result], test_images: int) -> str:
    """What the compressed model that has a narrower rival wins, and what it loses.

    A difference in accuracy below its standard error counts as none, and so do 5 % of latency.
    """
    by_method = {result.method: result for result in results}
    dense, narrower = by_method["dense"], by_method["narrower"]
    eight = by_method["fxhash int8"]
    small = next(result for result in results if result.method == "fxhash" and result.parameters == eight.parameters)
    signs = _sign(small, dense, test_images), _sign(small, narrower, test_images)
    # One of them is better than it, the other is not.
    joint = "but" if -1 in signs and max(signs) > -1 else "and"
    rivals = [result for result in results if result.method in _RIVALS]
    sentences = [
        f"{small.name} is {_accuracy(small, dense, test_images)} dense {joint} "
        f"{_accuracy(small, narrower, test_images)} the narrower network of as many parameters, in a file "
        f"{_smaller(small, dense)} than dense ({_smaller(eight, dense)} with factors in 8 bits)",
        f"It is {_speed(small, dense, rivals)}",
        f"Its weights take {_of_dense(small, dense)} of the dense memory",
    ]
    int8 = by_method.get("int8")
    if int8 is not None:
        sentences[-1] += f", those of int8 {_of_dense(int8, dense)}"
        accuracy = _accuracy(int8, small, test_images)
        sentences.append(f"In 8 bits alone, dense is {accuracy} {small.name}, in a file {_smaller(int8, dense)}")
    return f"{'. '.join(sentences)}."


def _accuracy(one: Result, other: Result, test_images: int) -> str:
    sign = _sign(one, other, test_images)
    if sign == 0:
        return "as accurate as"
    return f"{100 * abs(one.accuracy - other.accuracy):.1f} points {'more' if sign > 0 else 'less'} accurate than"


def _sign(one: Result, other: Result, test_images: int) -> int:
    """1 or -1 where one is more or less accurate than the other, 0 where that may be chance."""
    difference = one.accuracy - other.accuracy
    noise = (standard_error(one, test_images) ** 2 + standard_error(other, test_images) ** 2) ** 0.5
    return 0 if abs(difference) < noise else (1 if difference > 0 else -1)


def _of_dense(one: Result, dense: Result) -> str:
    return f"{one.resident_bytes / dense.resident_bytes:.0%}"


def _smaller(one: Result, dense: Result) -> str:
    factor = dense.file_bytes / one.file_bytes
    if factor < 1:
        return f"{1 / factor:.1f} times larger"
    return f"{factor:.1f} times smaller" if factor < 10 else f"{factor:.0f} times smaller"


def _speed(small: Result, dense: Result, rivals: Sequence[Result]) -> str:
    """How its latency compares: with dense first, then with each group of rivals."""
    words: dict[str, list[str]] = {"slower than": [], "as fast as": [], "faster than": []}
    for rival in rivals:
        words[_compared(small.ratio, rival.ratio)].append(f"{rival.name} ({rival.ratio:.2f})")
    parts = [f"{word} {_listed(names)}" for word, names in words.items() if names]
    return f"{_compared(small.ratio, dense.ratio)} dense ({small.ratio:.2f} of its latency), {_listed(parts)}"


def _compared(one: float, other: float) -> str:
    if one > (1 + _NOISE) * other:
        return "slower than"
    return "faster than" if other > (1 + _NOISE) * one else "as fast as"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def write_results(
    results: Sequence[Result],
    work: Work,
    title: str,
    epochs: int,
    images: tuple[int, int],
    sentence: str,
    path: Path,
) -> None:
    """Write the results to a JSON file, with the command, the versions and the machine.

    Args:
        results: of all forms.
        work: what was done.
        title: of the chart.
        epochs: of each run.
        images: numbers of training and test images.
        sentence: the conclusion.
        path: of the file.
    """
    report = {
        "command": f"fxhash demo --epochs {epochs}",
        "fxhash": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread used",
        "title": title,
        "work": asdict(work),
        "epochs": epochs,
        "images": {"train": images[0], "test": images[1]},
        "results": [asdict(result) for result in results],
        "conclusion": sentence,
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
