"""A run of a fraction of a second: eight images of two classes, and a narrow ResNet-8."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from fxhash import training
from fxhash.training import RunOptions, RunResult, load_recipe


def write_images(folder: Path) -> Path:
    """Write the data set to a new folder."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(100 * label, 100 * label + 100, (8, 8, 3), generator=generator)
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / part / name / f"{index}.png")
    return folder


def tiny_options(images: Path, compress: float | None = 0.3, **changes: object) -> RunOptions:
    """Two epochs of two steps each, with averaged weights."""
    recipe = load_recipe("digits").with_changes({"epochs": 2, "batch_size": 3, "ema_decay": 0.5, **changes})
    return RunOptions("resnet8", f"imagefolder:{images}", recipe, compress, device="cpu", model_options={"width": 4})


def train(options: RunOptions, folder: Path, console: Console | None = None) -> RunResult:
    return training.train(options, folder, console=console or Console(quiet=True))


def resume(folder: Path, console: Console | None = None) -> RunResult:
    return training.resume(folder, console=console or Console(quiet=True))


def left_by(folder: Path) -> tuple[bytes, list[dict[str, str]]]:
    """What a run leaves: its model, and its curves but for the time that they took."""
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    curves = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    return (folder / "model.safetensors").read_bytes(), curves
