"""What a recipe reaches: runs of `fxhash train` that differ in size and seed alone, the dense model among them.

Each run has a folder; one that was stopped goes on, one that is finished is only read. Writes a CSV row a run.

    python benchmarks/recipes.py --data imagefolder:DIR --name "CIFAR-10 (JPEG)" --model resnet20 --epochs 30 \\
        --precision bf16 --compress 0.5 0.25 0.1 --runs runs --output benchmarks/results/recipes.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import torch
from record import commit, machine


def main() -> None:
    arguments = parse_arguments()
    rows = []
    for seed in arguments.seeds:
        for compress in (None, *arguments.compress):
            options = [
                *("--model", arguments.model, "--data", arguments.data, "--epochs", str(arguments.epochs)),
                *("--precision", arguments.precision, "--seed", str(seed)),
                *(() if compress is None else ("--compress", str(compress))),
            ]
            size = "dense" if compress is None else f"{100 * compress:g}"
            folder = arguments.runs / f"{arguments.model}-{size}-{seed}"
            if not (folder / "result.json").exists():
                resumed = (folder / "run.json").exists()
                what = ["--resume"] if resumed else options
                subprocess.run([sys.executable, "-m", "fxhash", "train", *what, "--output", str(folder)], check=True)
            rows.append(read_run(folder, arguments, options))
            print(rows[-1], flush=True)
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as of `fxhash train`")
    parser.add_argument("--name", required=True, help="name of the data in the rows")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compress", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs' folders")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the runs, for the rows")
    parser.add_argument("--commit", default=commit(), help="at which the runs were made, for the rows")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def read_run(folder: Path, arguments: argparse.Namespace, options: list[str]) -> dict[str, object]:
    """What was asked for, and what came of it."""
    run, result = (json.loads((folder / name).read_text()) for name in ("run.json", "result.json"))
    with (folder / "metrics.csv").open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    command = " ".join(["fxhash", "train", *options]).replace(arguments.data, arguments.data.partition(":")[0] + ":DIR")
    return {
        "model": run["options"]["model"],
        "data": arguments.name,
        "recipe": run["options"]["recipe"]["name"],
        "compress": run["options"]["compress"] or "",
        "seed": run["options"]["seed"],
        "epochs": result["epochs"],
        "precision": run["options"]["recipe"]["precision"],
        "trainable_before": result["trainable_before"],
        "trainable_after": result["trainable_after"],
        "test_accuracy": round(result["test_accuracy"], 4),
        "minutes": round(sum(seconds) / 60, 1),
        "threads": arguments.threads,
        "command": command,
        "commit": arguments.commit,
        "machine": machine(),
        "torch": run["versions"]["torch"],
        "python": run["versions"]["python"],
    }


if __name__ == "__main__":
    main()
