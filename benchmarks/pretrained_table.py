"""Write the tables of `docs/guide/pretrained.md`, from the records of `pretrained.py` and the two scripts beside it.

python benchmarks/pretrained_table.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import page_tables
from page_tables import RESULTS, ROOT, fill

PAGE = ROOT / "docs" / "guide" / "pretrained.md"
Record = Mapping[str, Any]


def main() -> None:
    fill(PAGE, {name: block(name) for name in TABLES})


def block(name: str, results: Path = RESULTS) -> str:
    """A table with its marks; empty if there is no record in the folder of results."""
    file, lines = TABLES[name]
    path = results / file
    return page_tables.block(name, lines(json.loads(path.read_text())) if path.exists() else ())


def encoder_by_bytes(record: Record) -> Iterator[str]:
    """Rounding beside factors in 8 bits, from the most bytes to the fewest."""
    yield "| weights | of the parameters | bytes | cosine | rank correlation | CPU seconds |"
    yield "|---|--:|--:|--:|--:|--:|"
    rows = [row for row in record["rows"] if row["fraction"] == 1 or row["method"].endswith(", 8 bits")]
    for row in sorted(rows, key=lambda row: (-row["bytes"], row["cosine"])):
        yield (
            f"| {row['method']} | {row['fraction']:.0%} | {row['bytes']:.1%} | {row['cosine']:.2f} "
            f"| {row['rank_correlation']:.2f} | {cpu_seconds(record, row):.0f} |"
        )


def cpu_seconds(record: Record, row: Mapping[str, Any]) -> float:
    """The time that a row took with that of the rows that it goes on from: recovery from the calibrated start."""
    earlier = [each for each in record["rows"] if each["fraction"] == row["fraction"]]
    method = row["method"].removesuffix(", 8 bits")
    by_method = {each["method"]: each["cpu_seconds"] for each in earlier}
    total = by_method[method]
    if minutes := recovery_minutes(method):
        total += by_method["fxhash, calibrated"]
        total += sum(time for name, time in by_method.items() if 0 < recovery_minutes(name) < minutes)
    return total


def recovery_minutes(method: str) -> float:
    """CPU minutes of recovery without rounding; 0 for other methods."""
    found = re.fullmatch(r"fxhash, ([\d.]+) CPU minutes of recovery", method)
    return float(found[1]) if found else 0.0


def encoder_by_parameters(record: Record) -> Iterator[str]:
    """Cosines of ways to have as few parameters."""
    columns = {
        "fxhash, calibrated": "fxhash, calibrated",
        "after 5 CPU minutes": "fxhash, 5 CPU minutes of recovery",
        "after 20 CPU minutes": "fxhash, 20 CPU minutes of recovery",
        "whitened SVD": "SVD of each layer, whitened",
        "SVD": "SVD of each layer",
        "fxhash, not calibrated": "fxhash, of the weights alone",
    }
    return by_fraction(record, columns, lambda row: f"{row['cosine']:.2f}")


def classifier(record: Record) -> Iterator[str]:
    """Accuracies in per cent, of the dense model and of ways to have as few parameters."""
    (dense,) = (row["accuracy"] for row in record["rows"] if row["method"] == "dense")
    yield f"The dense model has {100 * dense:.1f} %."
    yield ""
    columns = {
        "fxhash, calibrated": "fxhash, calibrated",
        "in 8 bits": "fxhash, calibrated, 8 bits",
        "after 5 CPU minutes": "fxhash, 5 CPU minutes of recovery",
        "after 20 CPU minutes": "fxhash, 20 CPU minutes of recovery",
        "whitened SVD": "SVD of each layer, whitened",
        "SVD": "SVD of each layer",
        "fxhash, not calibrated": "fxhash, of the weights alone",
    }
    yield from by_fraction(record, columns, lambda row: f"{100 * row['accuracy']:.1f}")


def by_fraction(record: Record, columns: Mapping[str, str], cell: Callable[[Mapping[str, Any]], str]) -> Iterator[str]:
    """A line a fraction and a column a method; columns of methods without any row are left out."""
    found = {(row["method"], row["fraction"]): row for row in record["rows"] if row["fraction"] < 1}
    measured = {method for method, _ in found}
    shown = {title: method for title, method in columns.items() if method in measured}
    yield f"| of the parameters | {' | '.join(shown)} |"
    yield f"|--:|{'--:|' * len(shown)}"
    for fraction in sorted({fraction for _, fraction in found}, reverse=True):
        rows = [found.get((method, fraction)) for method in shown.values()]
        cells = ["" if row is None else cell(row) for row in rows]
        yield f"| {fraction:.0%} | {' | '.join(cells)} |"


def fit(record: Record) -> Iterator[str]:
    """Time and memory of each model."""
    yield "| model | weights, millions | compressed to | minutes | CPU minutes | peak memory, GB |"
    yield "|---|--:|--:|--:|--:|--:|"
    for row in record["rows"]:
        cells = [f"{row['parameters'] / 1e6:.1f}", f"{row['fraction']:.0%}"]
        cells += [f"{row[time] / 60:.1f}" for time in ("seconds", "cpu_seconds")]
        yield f"| {row['model']} | {' | '.join(cells)} | {row['peak_bytes'] / 1e9:.1f} |"


# Name -> the record, and the lines that are made of it.
TABLES: dict[str, tuple[str, Callable[[Record], Iterator[str]]]] = {
    "a sentence encoder by bytes": ("pretrained.json", encoder_by_bytes),
    "a sentence encoder by parameters": ("pretrained.json", encoder_by_parameters),
    "an image classifier": ("pretrained_resnet.json", classifier),
    "what the fit takes": ("pretrained_fit.json", fit),
}


if __name__ == "__main__":
    main()
