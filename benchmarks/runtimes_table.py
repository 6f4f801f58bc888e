"""Write the table of forms in several runtimes into `docs/benchmarks.md`, from the record of `deploy.py --runtimes`.

python benchmarks/runtimes_table.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import page_tables
from page_tables import RESULTS, ROOT, fill

RECORD = RESULTS / "runtimes.json"
PAGE = ROOT / "docs" / "benchmarks.md"
NAME = "forms in several runtimes"
NAMES = {
    "resnet34": "ResNet-34, CIFAR stem",
    "resnet50": "ResNet-50, 224",
    "vit_b_16": "ViT-B/16, 224",
    "mobilenet_v3_large": "MobileNetV3 Large, 224",
    "encoder": "6-layer encoder of BERT's size, 64 tokens",
    "recommender": "recommender of two tables",
}


def main() -> None:
    fill(PAGE, {NAME: block(RECORD)})


def block(record: Path) -> str:
    """The table with its marks: empty if there is no record."""
    return page_tables.block(NAME, lines(json.loads(record.read_text())) if record.exists() else ())


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """A table for each model, batch and form of a record."""
    yield f"{record['machine']}, {record['cpu_capability']}, {record['threads']} threads, torch {record['torch']}."
    groups = dict.fromkeys((result["model"], result["batch"]) for result in record["results"])
    for model, batch in groups:
        yield ""
        yield (
            f"| {NAMES[model]}, batch {batch} | ms | over dense, eager | over dense, ONNX Runtime | MB on disk "
            "| MB resident |"
        )
        yield "|---|--:|--:|--:|--:|--:|"
        for result in record["results"]:
            if (result["model"], result["batch"]) == (model, batch):
                yield row(result)


def row(result: Mapping[str, Any]) -> str:
    """The line of one form."""
    ratios = [result["ratio_to_dense"], result["ratio_to_onnx"]]
    sizes = [result["disk_bytes"], result["resident_bytes"]]
    cells = [f"{result['milliseconds']:.2f}"]
    cells += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    cells += ["" if size is None else f"{size / 1e6:.1f}" for size in sizes]
    return f"| {result['candidate'].replace('%', ' %')} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
