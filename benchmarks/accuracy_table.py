"""Means over seeds of what `accuracy.py` recorded, as a Markdown table, best first.

python benchmarks/accuracy_table.py benchmarks/results/accuracy.csv
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from accuracy import Outcome, Run, read_rows


class Cell(NamedTuple):
    """Runs that differ in their seed alone, at the learning rate that was the best for the first seed."""

    run: Run
    trained: int
    accuracies: list[float]
    rates: list[float]

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
        cells.append(Cell(replace(cell, learning_rate=best), trained, accuracies, sorted(sweep)))
    return sorted(cells, key=lambda cell: (cell.run.network, cell.run.image_size, -cell.run.compress, -cell.mean))


def main() -> None:
    print("| network | size | variant | trained parameters | test accuracy, % | seeds | learning rate | of |")
    print("|---|--:|---|--:|--:|--:|--:|---|")
    for cell in read_cells(Path(sys.argv[1])):
        accuracy = f"{100 * cell.mean:.1f} ± {100 * cell.deviation:.1f}"
        rates = ", ".join(f"{rate:g}" for rate in cell.rates)
        print(
            f"| {cell.run.network} | {100 * cell.run.compress:g} % | {cell.run.variant} | {cell.trained:,} "
            f"| {accuracy} | {len(cell.accuracies)} | {cell.run.learning_rate:g} | {rates} |"
        )


if __name__ == "__main__":
    main()
