"""Means over seeds of what `accuracy.py` recorded, as a Markdown table, from the largest network to the smallest.

python benchmarks/accuracy_table.py benchmarks/results/accuracy.csv
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from accuracy import Outcome, Run, read_rows

METHODS = {
    "fxhash-16": "**fxhash**",
    "fxhash-16-taught": "fxhash, distilled",
    "fxhash-16-warm": "fxhash, from dense weights",
    "fxhash-16-warm-taught": "fxhash, from dense weights, distilled",
    "dense-taught": "dense, distilled",
    "square-smh": "Structured Multi-Hashing as published",
    "random-hash": "random hashing (HashedNets)",
}


class Cell(NamedTuple):
    """Runs that differ in their seed alone, at the learning rate that was the best for the first seed."""

    run: Run
    trained: int
    accuracies: list[float]

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; not a number for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else float("nan")


def read_cells(path: Path) -> list[Cell]:
    """All cells of a file, by network, size and mean accuracy."""
    rows: dict[Run, dict[Run, Outcome]] = {}
    for run, outcome in read_rows(path).items():
        rows.setdefault(replace(run, learning_rate=0.0, seed=0), {})[run] = outcome
    cells = []
    for cell, runs in rows.items():
        sweep = {run.learning_rate: outcome.test_accuracy for run, outcome in runs.items() if run.seed == 0}
        best = max(sweep, key=lambda rate: sweep[rate])
        chosen = {run: outcome for run, outcome in runs.items() if run.learning_rate == best}
        trained = next(iter(chosen.values())).trainable_after
        accuracies = [outcome.test_accuracy for outcome in chosen.values()]
        cells.append(Cell(replace(cell, learning_rate=best), trained, accuracies))
    return sorted(cells, key=lambda cell: (cell.run.network, cell.run.image_size, -cell.run.compress, -cell.mean))


def main() -> None:
    cells = sorted(read_cells(Path(sys.argv[1])), key=lambda cell: (-cell.trained, -cell.mean))
    print("| method | network | size | trained parameters | test accuracy, % | peak learning rate |")
    print("|---|---|--:|--:|--:|--:|")
    for cell in cells:
        run = cell.run
        size = "dense" if run.compress == 1 else f"{100 * run.compress:g} %"
        method = METHODS.get(run.variant, run.variant)
        print(
            f"| {method}, {run.epochs} epochs | {title(run.network)} | {size} | {cell.trained:,} "
            f"| {described(cell)} | {run.learning_rate:g} |"
        )


def title(network: str) -> str:
    """`"resnet8x10"` in words."""
    family, _, width = network.partition("x")
    return f"ResNet-{family.removeprefix('resnet')}" + (f" of width {width}" if width else "")


def described(cell: Cell) -> str:
    """Mean and standard deviation in per cent, or the one value there is."""
    deviation = f" ± {100 * cell.deviation:.1f}" if len(cell.accuracies) > 1 else ""
    return f"{100 * cell.mean:.1f}{deviation}"


if __name__ == "__main__":
    main()
