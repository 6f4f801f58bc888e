"""Test accuracy for equal numbers of trained parameters: generators, networks and budgets, with equal tuning.

Trains every variant at every learning rate with the first seed, then at its best one with the other seeds. All else is
the recipe `small-images-adamw`. Each run is a row of a CSV file with all that repeats it; rows that are there already
are not run again, so that a grid may be extended or stopped at any time.

    python benchmarks/accuracy.py --data imagefolder:DIR --image-size 16 --variant square-smh random-hash fxhash-16 \\
        --compress 0.1 0.03 --output benchmarks/results/accuracy.csv
    python benchmarks/accuracy.py --data imagefolder:DIR --image-size 16 --network resnet8x9 resnet20x5 \\
        --variant dense --output benchmarks/results/accuracy.csv

A network is a residual one of the zoo, with a width after an `x` if it is not 16. Each run has one thread.

Variants that end in `-taught` are distilled from the logits of a dense ResNet-20, those that end in `-warm` are
initialized from its weights, and `-warm-taught` is both. It is trained once a seed as all else is, at its best learning
rate, and stored in the folder of `--teachers`.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import get_type_hints
from unittest.mock import patch

import torch
from generators import (
    Derived,
    PlainSMH,
    RandomHash,
    Tiles,
    frozen_right_,
    orthogonal_rows_,
    random_signs_,
    trained_diagonal_,
)
from lightning.pytorch import Trainer
from record import commit
from torch import fx, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import fxhash
from fxhash import zoo
from fxhash.smh import layout, planning
from fxhash.training import ImageData, load_data, load_recipe
from fxhash.training.classifier import Classifier
from fxhash.training.preprocessing import ReadsBytes
from fxhash.training.quiet import quiet_lightning

Build = Callable[[nn.Module, float, int], nn.Module]


def with_fxhash(
    model: nn.Module,
    compress: float,
    seed: int,
    aspect: float = 16,
    density_power: float = layout._DENSITY_POWER,
    kernels: int | None = None,
    **options: object,
) -> nn.Module:
    """The product, with options of `fxhash.transform`, or with other choices in its plan."""
    numbers_of_kernels = planning._numbers_of_kernels if kernels is None else lambda *_: [kernels]
    with (
        patch.object(layout, "_DENSITY_POWER", density_power),
        patch.object(planning, "_numbers_of_kernels", numbers_of_kernels),
    ):
        return fxhash.transform(model, compress, aspect=aspect, seed=seed, **options)


def changed(
    model: nn.Module, compress: float, seed: int, change: Callable[[fx.GraphModule], fx.GraphModule]
) -> nn.Module:
    """The product with one of the changes beside this file."""
    gm = fxhash.transform(model, compress, aspect=16, seed=seed)
    if change is trained_diagonal_:
        # It counts as well, so that the rest has to be smaller.
        used = gm.smh_generator.plan
        compress -= len(used.hashed) * used.layout.cols / used.trainable_before
        gm = fxhash.transform(model, compress, aspect=16, seed=seed)
    return change(gm)


def in_bits(model: nn.Module, compress: float, seed: int, bits: int) -> nn.Module:
    """The product with factors that are trained to be stored in so many bits."""
    return fxhash.quantize_factors(fxhash.transform(model, compress, aspect=16, seed=seed), bits=bits)


def derived(model: nn.Module, compress: float, seed: int, make: Callable[[int, int], nn.Module]) -> nn.Module:
    """One of the generators beside this file."""
    return Derived(model, compress, make)


def as_it_is(model: nn.Module, compress: float, seed: int) -> nn.Module:
    """The dense network."""
    return model


FIRST_AND_LAST = [r"^conv1\.", r"^fc\."]
TEACHER, TEACHER_RATE = "resnet20", 4e-2
TAUGHT, WARM = "-taught", "-warm"
# Each has rows in `results/accuracy.csv`, or `factor_bits.csv`: its name there is what it is found by.
VARIANTS: dict[str, Build] = {
    "dense": as_it_is,
    "square-smh": partial(derived, make=PlainSMH),
    "random-hash": partial(derived, make=RandomHash),
    "tall-smh-16": partial(derived, make=partial(PlainSMH, aspect=16)),
    "tiles-1": partial(derived, make=partial(Tiles, rank=1)),
    **{f"fxhash-{aspect}": partial(with_fxhash, aspect=aspect) for aspect in (1, 16, 64)},
    "fxhash-16-first-last": partial(with_fxhash, exclude=FIRST_AND_LAST),
    "fxhash-16-whole": partial(with_fxhash, separable=False),
    "fxhash-16-kernels3": partial(with_fxhash, kernels=3),
    "fxhash-16-power+0": partial(with_fxhash, density_power=0.0),
    "fxhash-16-orthogonal": partial(changed, change=orthogonal_rows_),
    "fxhash-16-frozen": partial(changed, change=frozen_right_),
    "fxhash-16-signs": partial(changed, change=random_signs_),
    "fxhash-16-diagonal": partial(changed, change=trained_diagonal_),
    **{f"fxhash-16-{bits}-bits": partial(in_bits, bits=bits) for bits in (8, 4)},
}
VARIANTS |= {f"{name}{TAUGHT}": VARIANTS[name] for name in ("dense", "fxhash-16")}
# The records are of the start without calibration.
warnings.filterwarnings("ignore", "init='pretrained' without calibration")
VARIANTS |= {f"fxhash-16{WARM}{taught}": partial(with_fxhash, init="pretrained") for taught in ("", TAUGHT)}


@dataclass(frozen=True)
class Run:
    """One training run: all that decides its outcome but the code; an image size of 0 is the images' own."""

    variant: str
    network: str
    compress: float
    learning_rate: float
    seed: int
    epochs: int
    train_images: int
    image_size: int
    data: str
    precision: str


@dataclass(frozen=True)
class Outcome:
    """What came of a run; accuracies and losses are those of the last epoch."""

    trainable_before: int
    trainable_after: int
    test_accuracy: float
    test_loss: float
    train_loss: float
    seconds: float
    commit: str
    torch: str
    python: str


TYPES = {name: kind for each in (Run, Outcome) for name, kind in get_type_hints(each).items()}


def main() -> None:
    arguments = parse_arguments()
    rows = read_rows(arguments.output)
    data_name = arguments.data.partition(":")[0] if arguments.name is None else arguments.name
    cells = [
        Run(
            variant=variant,
            network=network,
            compress=compress,
            learning_rate=0.0,
            seed=0,
            epochs=arguments.epochs,
            train_images=arguments.train_images,
            image_size=arguments.image_size or 0,
            data=data_name,
            precision=arguments.precision,
        )
        for network in arguments.network
        for variant in arguments.variant
        for compress in ([1.0] if VARIANTS[variant] is as_it_is else arguments.compress)
    ]
    with ProcessPoolExecutor(arguments.processes) as pool:
        running: dict[Future[Outcome], Run] = {}

        def start(runs: Iterable[Run]) -> None:
            for run in runs:
                if run not in rows and run not in running.values():
                    running[pool.submit(train, run, arguments.data, commit(), arguments.teachers)] = run

        def start_missing() -> None:
            for cell in cells:
                sweep = [replace(cell, learning_rate=rate) for rate in arguments.learning_rates]
                if all(run in rows for run in sweep):
                    best = max(sweep, key=lambda run: rows[run].test_accuracy)
                    start(replace(best, seed=seed) for seed in range(1, arguments.seeds))
                else:
                    start(sweep)

        start_missing()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                run = running.pop(future)
                rows[run] = future.result()
                append_row(arguments.output, run, rows[run])
                print(run, rows[run], flush=True)
            start_missing()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as of `fxhash train`, such as imagefolder:DIR")
    parser.add_argument("--name", help="name of the data in the rows; what stands before the colon if omitted")
    parser.add_argument("--train-images", type=int, default=20_000, help="how many, the same for all seeds")
    parser.add_argument("--image-size", type=int, help="scale a folder's images to as many pixels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--network", nargs="+", default=["resnet20"])
    parser.add_argument("--variant", nargs="+", required=True, choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--compress", type=float, nargs="+", default=[0.1, 0.03])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-2, 2e-2, 4e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--teachers", type=Path, default=Path("runs/teachers"), help="folder of dense networks")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.network != [TEACHER] and any(WARM in variant for variant in arguments.variant):
        parser.error(f"variants with {WARM!r} start from a dense {TEACHER}: give --network {TEACHER}")
    return arguments


def train(run: Run, data_name: str, at_commit: str, teachers: Path) -> Outcome:
    """Train and test once, in a process of its own."""
    torch.set_num_threads(1)
    data = load(data_name, run.train_images, run.image_size)
    started = time.perf_counter()
    torch.manual_seed(run.seed)
    dense = build_network(run.network, data)
    before = sum(parameter.numel() for parameter in dense.parameters())
    if WARM in run.variant:
        dense = teacher_of(run, data, teachers)
    model = VARIANTS[run.variant](dense, run.compress, run.seed)
    teacher = teacher_of(run, data, teachers) if run.variant.endswith(TAUGHT) else None
    metrics = fit(model, run, data, teacher)
    return Outcome(
        trainable_before=before,
        trainable_after=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        test_accuracy=round(metrics["test_accuracy"], 4),
        test_loss=round(metrics["test_loss"], 4),
        train_loss=round(metrics["train_loss"], 4),
        seconds=round(time.perf_counter() - started, 1),
        commit=at_commit,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def fit(model: nn.Module, run: Run, data: ImageData, teacher: nn.Module | None = None) -> dict[str, float]:
    """Train a model in place, and give the last epoch's losses and accuracy."""
    recipe = load_recipe("small-images-adamw").with_changes({"learning_rate": run.learning_rate, "epochs": run.epochs})
    statistics = data.statistics()
    taught_by = None if teacher is None else ReadsBytes(teacher, *statistics)
    classifier = Classifier(ReadsBytes(model, *statistics), recipe, data.mirrored, run.seed, taught_by)
    trained = TensorDataset(data.train_images, data.train_labels)
    tested = TensorDataset(data.test_images, data.test_labels)
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=run.epochs,
            precision=run.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=run.epochs,
            use_distributed_sampler=False,
        )
        order = DistributedSampler(trained, 1, 0, shuffle=True, seed=run.seed)
        trainer.fit(
            classifier, DataLoader(trained, recipe.batch_size, sampler=order, drop_last=True), DataLoader(tested, 500)
        )
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def teacher_of(run: Run, data: ImageData, folder: Path) -> nn.Module:
    """The dense network with the seed, data and epochs of a run, from its file, or trained if there is none yet."""
    as_teacher = replace(run, variant="dense", network=TEACHER, compress=1.0, learning_rate=TEACHER_RATE)
    words = "-".join(str(value) for value in asdict(as_teacher).values())
    path = folder / (re.sub(r"[^\w.]+", "-", words) + ".pt")
    if not path.exists():
        torch.manual_seed(run.seed)
        network = build_network(TEACHER, data)
        fit(network, as_teacher, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be at the same one: whoever comes last leaves a complete file.
        unfinished = path.with_suffix(f".{os.getpid()}")
        torch.save(network.state_dict(), unfinished)
        unfinished.replace(path)
    teacher = build_network(TEACHER, data)
    teacher.load_state_dict(torch.load(path, weights_only=True))
    return teacher


@cache
def load(name: str, train_images: int, image_size: int) -> ImageData:
    """The data with as many training images, the first of each class, of a size, or as they are for 0."""
    data = load_data(name, image_size=image_size or None)
    each = train_images // len(data.classes)
    chosen = torch.cat([(data.train_labels == label).nonzero()[:each, 0] for label in range(len(data.classes))])
    return replace(data, train_images=data.train_images[chosen], train_labels=data.train_labels[chosen])


def build_network(name: str, data: ImageData) -> nn.Module:
    """A residual network for the data: `"resnet20"`, or `"resnet20x8"` with 8 channels in the first stage."""
    family, _, width = name.partition("x")
    return zoo.create(family, num_classes=len(data.classes), in_channels=data.channels, width=int(width or 16))


def read_rows(path: Path) -> dict[Run, Outcome]:
    """The rows of earlier calls."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [{name: TYPES[name](value) for name, value in row.items()} for row in csv.DictReader(file)]
    names = [field.name for field in fields(Run)]
    return {
        Run(**{name: row[name] for name in names}): Outcome(**{name: row[name] for name in row.keys() - set(names)})
        for row in rows
    }


def append_row(path: Path, run: Run, outcome: Outcome) -> None:
    """Add a row to the file, below a heading if it is the first."""
    row = asdict(run) | asdict(outcome)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
