"""The demonstration: one small network trained dense and at a quarter, a tenth and a twentieth of its size.

On scikit-learn's handwritten digits (1797 grey images of 8x8 pixels that ship with the library), a ResNet-8 is trained
four times with the recipe `digits`. The model of each run is exported to a file, loaded into a freshly built model and,
if it is compressed, lowered for deployment: what is measured on the deployed network went through the file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# The data, which is loaded only when the demonstration runs: without the package it can't be imported.
import sklearn.datasets  # noqa: F401
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, fx, nn

import fxhash
from fxhash.training.data import ImageData, load_data
from fxhash.training.demo_results import Latency, Result, plot_accuracy, results_table, write_results
from fxhash.training.finished import export
from fxhash.training.folder import load_model
from fxhash.training.latency import median_latencies
from fxhash.training.options import RunOptions, RunResult
from fxhash.training.preprocessing import normalized
from fxhash.training.recipe import Recipe, load_recipe
from fxhash.training.run import train

COMPRESSIONS = (0.25, 0.10, 0.05)

_SEED = 0
# Calls timed for each batch size: enough for a steady median, few enough to take two seconds in all.
_TIMED_CALLS = {1: 200, 100: 50}


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run in eval mode, beside the same model as it came back from its file.

    Attributes:
        name: `dense`, or the fraction of the parameters asked for, such as `10 %`.
        run: what came of the run.
        trained: the model as the run left it.
        deployed: the model of the file, lowered if it is compressed.
        path: the file.
    """

    name: str
    run: RunResult
    trained: nn.Module
    deployed: nn.Module
    path: Path


def run_demo(output: Path, epochs: int, console: Console | None = None) -> tuple[Result, ...]:
    """Train, save, load, lower and measure the four models; print a table and write results and a plot.

    All of it runs on one thread, so that the figures don't depend on the number of cores.

    Args:
        output: directory for the four `.safetensors` files, `results.json` and `accuracy_over_size.png`;
            created if missing. Files of these names are overwritten.
        epochs: passes over the training images, for each model.
        console: where to print; standard output if None.

    Returns:
        One result a model, the dense one first.

    Raises:
        OSError: if a file can't be written.
    """
    with _one_thread():
        return _run(output, epochs, console or Console())


def measure(models: Sequence[TrainedModel], data: ImageData) -> tuple[Result, ...]:
    """Measure every model on the test images; the first one is the one that latencies are compared with."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in data.statistics())
    images = normalized(data.test_images, mean, std)
    latencies = {
        batch_size: median_latencies([model.deployed for model in models], images[:batch_size], calls)
        for batch_size, calls in _TIMED_CALLS.items()
    }
    results = []
    for index, model in enumerate(models):
        with torch.inference_mode():
            trained_logits, deployed_logits = model.trained(images), model.deployed(images)
        results.append(
            Result(
                name=model.name,
                trainable_parameters=model.run.trainable_after,
                file_bytes=model.path.stat().st_size,
                trained_accuracy=_exact(model.run.test_accuracy, len(images)),
                deployed_accuracy=_accuracy(deployed_logits, data.test_labels),
                largest_logit_difference=(trained_logits - deployed_logits).abs().max().item(),
                latency={
                    batch_size: Latency(1e3 * seconds[index], seconds[index] / seconds[0])
                    for batch_size, seconds in latencies.items()
                },
            )
        )
    return tuple(results)


def _run(output: Path, epochs: int, console: Console) -> tuple[Result, ...]:
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    data = load_data("digits")
    recipe = load_recipe("digits").with_changes({"epochs": epochs})
    console.print(f"Training a ResNet-8 for {epochs} epochs a model on {len(data.train_labels)} handwritten digits")
    console.print(f"Testing on {len(data.test_labels)} others, of which one is {1 / len(data.test_labels):.1%}")
    # A run is never overwritten, but a demonstration is: what stays of its runs are the files of their models.
    with TemporaryDirectory() as runs:
        models = [_train(compress, recipe, Path(runs), output, console) for compress in (None, *COMPRESSIONS)]
    results = measure(models, data)
    write_results(results, epochs, _SEED, output / "results.json")
    plot_accuracy(results, len(data.test_labels), output / "accuracy_over_size.png")
    console.print()
    console.print(results_table(results))
    console.print(f"\nFinished in {time.perf_counter() - started:.0f} s on one thread")
    for label, file in (("Results: ", "results.json"), ("Plot:    ", "accuracy_over_size.png")):
        # A path is wrapped by the terminal, never by us, so that it can be copied in one piece.
        console.print(f"{label}{output / file}", soft_wrap=True, markup=False, highlight=False)
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread for a while.

    A network this small gains little from more, and where cores are shared, threads that wait for each other can
    make a step a hundred times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(compress: float | None, recipe: Recipe, runs: Path, output: Path, console: Console) -> TrainedModel:
    """Train one model, export it to its file, and build what is deployed from that file."""
    name = "dense" if compress is None else f"{100 * compress:.0f} %"
    file_name = name.replace(" %", "_percent")
    folder, path = runs / file_name, output / f"{file_name}.safetensors"
    options = RunOptions(
        "resnet8",
        "digits",
        recipe,
        compress,
        seed=_SEED,
        device="cpu",
        model_options={"width": 32},
        test_each_epoch=False,
    )
    result = _train_with_progress(name, options, folder, console)
    export(folder, path)
    deployed = load_model(folder, path)
    if isinstance(deployed, fx.GraphModule):
        deployed = fxhash.lower_for_deploy(deployed)
    return TrainedModel(name, result, load_model(folder), deployed, path)


def _train_with_progress(name: str, options: RunOptions, folder: Path, console: Console) -> RunResult:
    """Train behind a progress bar that gives way to one line, so that a log file holds only the line."""
    started = time.perf_counter()
    columns = (
        TextColumn("{task.description:>5}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    silent = Console(file=StringIO(), force_terminal=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = _Bar(progress, progress.add_task(name, total=None))
        result = train(options, folder, console=silent, callbacks=[bar])
    console.print(f"{name:>5}: trained in {time.perf_counter() - started:.1f} s")
    return result


class _Bar(Callback):
    """A progress bar over the steps of all epochs."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress = progress
        self.task = task

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.update(self.task, total=trainer.estimated_stepping_batches)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.progress.advance(self.task)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).double().mean().item()


def _exact(accuracy: float, images: int) -> float:
    """The fraction of the images that a run's accuracy is, which was computed in 32 bits."""
    return round(accuracy * images) / images
