"""The front at real size: accuracy over trained parameters of networks that are small, and of compressed ones.

    python benchmarks/front.py --data imagefolder:DIR --pilots imagefolder:THIRD --runs DIR

CIFAR-10 (JPEG), 32 x 32 pixels. Pilots come first: each of four kinds of network gets the same settings, 4 epochs on a
third of the training images, which `THIRD` has. These choose the optimizer; as so few steps like larger ones than many
do, its peak is chosen by runs as long as those that count, 10 epochs of all images, at 16 x 16 pixels. Then each
network is trained once for 10 epochs on all images, with the setting that was best for its kind, and those that decide
with two more seeds. `docs/accuracy.md` says what is asked of them.

One run at a time, on one thread. Each has a folder in `--runs`, and a row of the CSV file once it is finished. Called
again, it goes on where it stopped; called twice at a time, the second takes what the first is not at.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from record import commit, machine

PILOT_EPOCHS, EPOCHS = 4, 10
IMAGE_SIZE, SMALL_IMAGE_SIZE = 32, 16
# Name of a file in the folder of a run whose loss became infinite.
DIVERGED = "diverged"
NO_RESULT: dict[str, Any] = {"trainable_before": "", "trainable_after": "", "test_accuracy": 0.0, "test_loss": math.inf}


@dataclass(frozen=True)
class Setting:
    """How to train: the recipe `small-images-adamw` with some changes.

    Attributes:
        optimizer: `"adamw"` or `"sgd"`.
        rate: peak of the learning rate.
        changes: of other options of `fxhash train`.
    """

    optimizer: str
    rate: float
    changes: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """Such as `"adamw 0.01"`, or `"sgd 0.1 weight-decay 0.0005"`."""
        return " ".join([self.optimizer, f"{self.rate:g}", *(f"{name} {x:g}" for name, x in self.changes.items())])


RATES = tuple(Setting("adamw", rate) for rate in (0.01, 0.02, 0.04))


def changes_of(best: Setting) -> list[Setting]:
    """Other settings, each with one thing changed from the best learning rate."""
    changes = ({"weight-decay": 0.05}, {"batch-size": 64}, {"label-smoothing": 0.0})
    with_sgd = [Setting("sgd", rate, {"weight-decay": 5e-4}) for rate in (0.1, 0.3, 1.0, 3.0)]
    return [*with_sgd, *(replace(best, changes=each) for each in changes)]


@dataclass(frozen=True)
class Network:
    """A network of the zoo, dense or compressed.

    Attributes:
        model: its name.
        options: of the zoo.
        parameters: to which it is compressed; 0 for the dense one.
        bits: in which its factors are trained; 32 for floating point.
    """

    model: str
    options: Mapping[str, int] = field(default_factory=dict, hash=False)
    parameters: int = 0
    bits: int = 32

    @property
    def kind(self) -> str:
        """Networks of one kind share a recipe: of a family, dense or compressed."""
        return f"{self.model.rstrip('0123456789')} {'compressed' if self.parameters else 'dense'}"

    @property
    def label(self) -> str:
        """Such as `"resnet20"`, `"convnext6-width48-patch2-to-29000"`, or `"resnet20-to-25800-4-bits"`."""
        options = [f"{name}{value}" for name, value in self.options.items()]
        size = ["to", str(self.parameters)] if self.parameters else []
        return "-".join([self.model, *options, *size, *([str(self.bits), "bits"] if self.bits < 32 else [])])


def convnext(width: int, patch: int = 2, parameters: int = 0) -> Network:
    """The network of six blocks; with patches of 2 x 2 pixels it takes a quarter of the time."""
    return Network("convnext6", {"width": width, "patch": patch}, parameters)


def resnet(depth: int, width: int = 16, parameters: int = 0, bits: int = 32) -> Network:
    """A residual network; 16 is the paper's width."""
    return Network(f"resnet{depth}", {"width": width}, parameters, bits)


SMALL, LARGE = 29_000, 97_500
# One of each kind, small ones as they decide most.
PILOTS = (resnet(20), resnet(20, parameters=26_972), convnext(24), convnext(48, parameters=SMALL))
# Of the kinds that the best of a size may come from. The dense ResNet is the one that is a contender.
PEAKS = (resnet(8, 10), resnet(20, parameters=26_972), convnext(24))
# Peaks over the one that short pilots chose.
FRACTIONS = {"adamw": (1.0, 0.5, 0.25), "sgd": (1.0, 0.3, 0.1)}
# At each size dense ones and compressed ones, in the order of how long they take. The sizes of files are those of
# factors that are trained in 4 bits, and of dense ones that are rounded to 4 bits.
CONTENDERS: dict[str, tuple[tuple[Network, ...], tuple[Network, ...]]] = {
    "small": ((resnet(8, 10), convnext(24)), (resnet(20, parameters=26_972), convnext(48, parameters=SMALL))),
    "20 kB": ((convnext(24),), (resnet(20, parameters=25_800, bits=4),)),
    "large": (
        (resnet(20, 10), convnext(48)),
        (resnet(20, 32, LARGE), resnet(8, 48, LARGE), resnet(14, 32, LARGE), resnet(14, 48, LARGE)),
    ),
    "50 kB": ((convnext(48),), (resnet(20, parameters=76_000, bits=4), resnet(14, 32, 75_000, bits=4))),
}
# What others compare with, with all seeds whether or not it is the best.
RESNETS = (resnet(20, parameters=26_972), resnet(20))
FURTHER_SEEDS = (1, 2)


@dataclass(frozen=True)
class Run:
    """One run."""

    network: Network
    setting: Setting
    epochs: int = EPOCHS
    seed: int = 0
    image_size: int = IMAGE_SIZE

    @property
    def stage(self) -> str:
        """`"pilot"`, `"peak"` or `"run"`."""
        if self.epochs == PILOT_EPOCHS:
            return "pilot"
        return "run" if self.image_size == IMAGE_SIZE else "peak"

    @property
    def name(self) -> str:
        """Of its folder and its row."""
        setting = [] if self.stage == "run" else [self.setting.label.replace(" ", "-")]
        return "-".join([self.stage, self.network.label, *setting, str(self.seed)])


Rows = Mapping[str, Mapping[str, str]]


def plan(rows: Rows) -> Iterator[Run]:
    """All runs in order, as far as those that are finished decide what they are.

    Args:
        rows: of what is finished, by name.
    """
    for network in PILOTS:
        yield from pilots_of(network, rows)
    for network in PEAKS:
        yield from peaks_of(network, rows)
    yield from runs_of([network for network in RESNETS if network.parameters], (0, *FURTHER_SEEDS), rows)
    for dense, compressed in CONTENDERS.values():
        yield from runs_of((*dense, *compressed), (0,), rows)
        yield from runs_of([*best_of(dense, rows), *best_of(compressed, rows)], FURTHER_SEEDS, rows)
    yield from runs_of([network for network in RESNETS if not network.parameters], (0, *FURTHER_SEEDS), rows)


def pilots_of(network: Network, rows: Rows) -> list[Run]:
    """The pilots that find the setting of a kind of network.

    Learning rates of AdamW; one thing changed from the best of them; the best one with SGD in small batches too.
    """
    pilots = [Run(network, setting, PILOT_EPOCHS) for setting in RATES]
    if best := best_pilot(pilots, rows):
        pilots += [Run(network, setting, PILOT_EPOCHS) for setting in changes_of(best.setting)]
        if best := best_pilot([pilot for pilot in pilots if pilot.setting.optimizer == "sgd"], rows):
            both = replace(best.setting, changes={**best.setting.changes, "batch-size": 64})
            pilots.append(Run(network, both, PILOT_EPOCHS))
    return pilots


def peaks_of(network: Network, rows: Rows) -> list[Run]:
    """The long runs with small images that find the peak of a kind: three, then the best in batches of another size."""
    setting = setting_of_pilots(network.kind, rows)
    if setting is None:
        return []
    rates = [round(setting.rate * fraction, 6) for fraction in FRACTIONS[setting.optimizer]]
    runs = [Run(network, replace(setting, rate=rate), image_size=SMALL_IMAGE_SIZE) for rate in rates]
    if best := best_pilot(runs, rows):
        changes = dict(best.setting.changes)
        if changes.pop("batch-size", None) is None:
            changes["batch-size"] = 64
        runs.append(replace(best, setting=replace(best.setting, changes=changes)))
    return runs


def best_pilot(pilots: Sequence[Run], rows: Rows) -> Run | None:
    """The best of some pilots; None if there are none, and until all are finished."""
    if not pilots or any(pilot.name not in rows for pilot in pilots):
        return None
    return max(pilots, key=lambda pilot: accuracy(rows, pilot))


def runs_of(networks: Iterable[Network], seeds: Iterable[int], rows: Rows) -> Iterator[Run]:
    """Runs of some networks with each of some seeds, as far as pilots have chosen their settings."""
    for seed in seeds:
        for network in networks:
            setting = chosen_setting(network.kind, rows)
            if setting is not None:
                yield Run(network, setting, seed=seed)


def chosen_setting(kind: str, rows: Rows) -> Setting | None:
    """The setting of a kind of network: of the best long run with small images, or of its best pilot if it has none.

    None until all are finished.
    """
    for network in PEAKS:
        if network.kind == kind:
            return best_setting(peaks_of(network, rows), rows)
    return setting_of_pilots(kind, rows)


def setting_of_pilots(kind: str, rows: Rows) -> Setting | None:
    """The best setting of the pilots of a kind of network; None until all are finished."""
    (network,) = (network for network in PILOTS if network.kind == kind)
    return best_setting(pilots_of(network, rows), rows)


def best_setting(pilots: Sequence[Run], rows: Rows) -> Setting | None:
    """That of the best of some pilots; None if there are none, and until all are finished."""
    best = best_pilot(pilots, rows)
    return None if best is None else best.setting


def best_of(networks: Iterable[Network], rows: Rows) -> list[Network]:
    """The network that is best with seed 0; none until all are finished."""
    runs = [Run(network, RATES[0]) for network in networks]
    if any(run.name not in rows for run in runs):
        return []
    return [max(runs, key=lambda run: accuracy(rows, run)).network]


def accuracy(rows: Rows, run: Run) -> float:
    """The test accuracy of a finished run."""
    return float(rows[run.name]["test_accuracy"])


def main() -> None:
    arguments = parse_arguments()
    tried: set[str] = set()
    while True:
        rows = read_rows(arguments.output)
        for run in plan(rows):
            if run.name not in rows and run.name not in tried:
                break
        else:
            break
        tried.add(run.name)
        folder = arguments.runs / run.name
        if (folder / "result.json").exists() or train(run, folder, arguments) or (folder / DIVERGED).exists():
            write_row(arguments.output, row_of(run, folder))
        print(run.name, "is finished" if run.name in read_rows(arguments.output) else "is left out", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="all images, as of `fxhash train`")
    parser.add_argument("--pilots", required=True, help="a third of the training images, and all of the test")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs' folders")
    parser.add_argument("--precision", default="bf16", help="32 where the processor has no bfloat16")
    results = Path(__file__).parent / "results"
    parser.add_argument("--output", type=Path, default=results / "front.csv")
    return parser.parse_args()


def train(run: Run, folder: Path, arguments: argparse.Namespace) -> bool:
    """Begin a run or go on with it; whether it is finished: not if another process is at it, or it fails.

    If its loss becomes infinite, its folder says so.
    """
    where = ["--resume"] if (folder / "run.json").exists() else options_of(run, arguments)
    command = [sys.executable, "-m", "fxhash", "train", *where, "--output", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.run(command, check=False, env=environment, stderr=subprocess.PIPE, text=True)
    print(process.stderr, end="", file=sys.stderr, flush=True)
    if "fxhash: error: the loss is " in process.stderr:
        (folder / DIVERGED).touch()
    return process.returncode == 0


def options_of(run: Run, arguments: argparse.Namespace) -> list[str]:
    """The options of `fxhash train`."""
    given = {
        "model": run.network.model,
        "data": arguments.pilots if run.stage == "pilot" else arguments.data,
        "recipe": "small-images-adamw",
        "epochs": run.epochs,
        "seed": run.seed,
        "precision": arguments.precision,
        "device": "cpu",
        "image-size": run.image_size,
        "optimizer": run.setting.optimizer,
        "learning-rate": run.setting.rate,
        **run.setting.changes,
    }
    if run.network.parameters:
        given["compress"] = compress_of(run.network)
    if run.network.bits < 32:
        given["factor-bits"] = run.network.bits
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    for name, value in run.network.options.items():
        options += ["--model-option", f"{name}={value}"]
    return options


def compress_of(network: Network) -> float:
    """The fraction that leaves a compressed network its parameters."""
    import torch

    from fxhash import zoo

    with torch.device("meta"):
        dense = zoo.create(network.model, **network.options)
    return round(network.parameters / sum(parameter.numel() for parameter in dense.parameters()), 5)


def row_of(run: Run, folder: Path) -> dict[str, object]:
    """What was asked for, and what came of it."""
    begun = json.loads((folder / "run.json").read_text())
    if (folder / DIVERGED).exists():
        result = {**NO_RESULT, "epochs": run.epochs}
    else:
        result = json.loads((folder / "result.json").read_text())
    seconds = [float(row["seconds"]) for row in read_csv(folder / "metrics.csv")]
    options = begun["options"]
    return {
        "name": run.name,
        "kind": run.network.kind,
        "network": run.network.label,
        "compress": options["compress"] or "",
        "setting": run.setting.label,
        "seed": run.seed,
        "epochs": result["epochs"],
        "train_images": begun["images"]["train"],
        "precision": options["recipe"]["precision"],
        "trainable_before": result["trainable_before"],
        "trainable_after": result["trainable_after"],
        "test_accuracy": round(result["test_accuracy"], 4),
        "test_loss": round(result["test_loss"], 4),
        "minutes": round(sum(seconds) / 60, 1),
        "commit": commit(),
        "machine": machine(),
        "torch": begun["versions"]["torch"],
        "python": begun["versions"]["python"],
    }


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of finished runs, by name."""
    return {row["name"]: row for row in read_csv(path)}


def read_csv(path: Path) -> list[dict[str, str]]:
    """All rows of a file; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_row(path: Path, row: Mapping[str, object]) -> None:
    """Add a row to the file, below a heading if it is the first, unless it is there."""
    rows = read_rows(path)
    if row["name"] in rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if not rows:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
