"""The demonstration: train, save, load, deploy and measure the forms of one network, and say what came of it.

A ResNet-20 is trained on 2,000 digits of MNIST, dense and at three sizes, and so is a narrower one of as many
parameters as one of these. The model of each run is exported to a file, loaded into a freshly built model and deployed:
what is measured went through the file. Two rivals need no training: the dense network in 8 bits, and with its batch
norms folded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fxhash.compare.comparison import measure
from fxhash.demo.chart import plot_results
from fxhash.demo.forms import Form, compressed, dense, folded, int8
from fxhash.demo.results import Result, conclusion, explanation, results_table, write_results
from fxhash.demo.work import Work
from fxhash.training.data import ImageData, load_data
from fxhash.training.options import RunOptions, RunResult
from fxhash.training.preprocessing import normalized
from fxhash.training.recipe import Recipe, load_recipe
from fxhash.training.report.comparison import percent
from fxhash.training.run import train

# Of calls of each form, side by side: enough for a steady median.
_SECONDS = 1.0
# By which ranges of activations are found.
_CALIBRATION_IMAGES = 500


def run_demo(
    output: Path, epochs: int, console: Console | None = None, work: Work | None = None, seconds: float = _SECONDS
) -> tuple[Result, ...]:
    """Train, save, load, deploy and measure; print a table and a sentence, and write results and a chart.

    All of it runs on one thread, so that the figures don't depend on the number of cores.

    Args:
        output: directory for a file of each form, `results.json` and `demo.png`; created if missing. Files of these
            names are overwritten.
        epochs: passes over the training images, for each network.
        console: where to print; standard output if None.
        work: what to do; that of the command if None.
        seconds: to spend on the calls of each form.

    Returns:
        One result a form, the dense one first.

    Raises:
        TrainingError: if the package with the images is not installed.
        OSError: if a file can't be written.
    """
    with _one_thread():
        return _Demonstration(work or Work(), output, epochs, console or Console(), seconds).run()


class _Demonstration:
    """What the steps of the demonstration share."""

    def __init__(self, work: Work, output: Path, epochs: int, console: Console, seconds: float) -> None:
        self.work = work
        self.output = output
        self.console = console
        self.seconds = seconds
        self.data = load_data(work.data, image_size=work.image_size)
        self.recipe = load_recipe(work.recipe).with_changes({"epochs": epochs})

    def run(self) -> tuple[Result, ...]:
        started = time.perf_counter()
        self.output.mkdir(parents=True, exist_ok=True)
        train_images, test_images = len(self.data.train_labels), len(self.data.test_labels)
        height, width = self.data.train_images.shape[2:]
        title = f"{self.work.title}, {height} x {width} pixels"
        self.console.print(
            f"Training {title}:\n"
            f"{train_images:,} images, {self.recipe.epochs} epochs; {test_images:,} others are the test",
            highlight=False,
        )
        # A run is never overwritten, but a demonstration is: what stays of its runs are the files of their models.
        with TemporaryDirectory() as runs:
            forms = self._forms(Path(runs))
        results = self._measure(forms)
        sentence = conclusion(results, test_images)
        images = train_images, test_images
        path = self.output / "results.json"
        write_results(results, self.work, title, self.recipe.epochs, images, sentence, path)
        plot_results(results, title, test_images, self.output / "demo.png")
        self.console.print()
        self.console.print(results_table(results))
        self.console.print(explanation(results, test_images, self.work), highlight=False)
        self.console.print(f"\n{sentence}", highlight=False)
        self.console.print(f"\nFinished in {time.perf_counter() - started:.0f} s on one thread", highlight=False)
        for label, file in (("Results: ", "results.json"), ("Chart:   ", "demo.png")):
            # A path is wrapped by the terminal, never by us, so that it can be copied in one piece.
            self.console.print(f"{label}{self.output / file}", soft_wrap=True, markup=False, highlight=False)
        return results

    def _forms(self, runs: Path) -> list[Form]:
        """Train all networks, and deploy what they became."""
        work = self.work
        images = self._normalized(self.data.train_images[:: -(-len(self.data.train_labels) // _CALIBRATION_IMAGES)])
        narrower = work.narrower(self.data.channels, len(self.data.classes))
        wide = dense("dense", "dense", *self._train("dense", runs / "dense", work.width), self.output)
        forms = [wide, folded(wide, self.output)]
        name = f"dense, width {narrower}"
        forms.append(dense(name, "narrower", *self._train(name, runs / "narrower", narrower), self.output))
        quantized = int8(wide, images, self.output)
        if quantized is None:
            self.console.print("int8 is left out: this version of torch can't quantize, or this machine has no kernels")
        else:
            forms.append(quantized)
        for compress in work.compressions:
            name = f"fxhash {percent(compress)}"
            run = self._train(name, runs / name, work.width, compress)
            budget = int(work.cached * 4 * run[1].trainable_before)
            forms.append(compressed(name, *run, self.output, budget))
            if compress == work.rivalled:
                forms.append(compressed(f"{name}, 8 bits", *run, self.output, budget, dtype="int8"))
        return forms

    def _train(self, name: str, folder: Path, width: int, compress: float | None = None) -> tuple[Path, RunResult]:
        """Train one network behind a progress bar that gives way to one line: a log file holds only the line."""
        options = _options(self.work, self.recipe, width, compress)
        started = time.perf_counter()
        columns = (
            TextColumn("{task.description:>14}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        )
        silent = Console(file=StringIO(), force_terminal=False)
        terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not terminal) as progress:
            bar = _Bar(progress, progress.add_task(name, total=None))
            result = train(options, folder, console=silent, callbacks=[bar])
        self.console.print(f"{name:>14}: trained in {time.perf_counter() - started:.1f} s", highlight=False)
        return folder, result

    def _measure(self, forms: list[Form]) -> tuple[Result, ...]:
        """Test every form, and time all of them side by side."""
        images = self._normalized(self.data.test_images)
        rows = measure([form.candidate(images[:1]) for form in forms], self.seconds)
        results = []
        for form, row in zip(forms, rows, strict=True):
            results.append(
                Result(
                    name=form.name,
                    method=form.method,
                    parameters=form.parameters,
                    accuracy=self._accuracy(form, images),
                    # It was computed in 32 bits.
                    trained_accuracy=round(form.trained_accuracy * len(images)) / len(images),
                    file=form.path.name,
                    file_bytes=form.path.stat().st_size,
                    milliseconds=row.milliseconds,
                    ratio=row.ratio,
                    resident_bytes=form.resident_bytes,
                )
            )
        return tuple(results)

    def _accuracy(self, form: Form, images: torch.Tensor) -> float:
        with torch.inference_mode():
            right = sum(
                int((form.deployed(batch).argmax(dim=1) == labels).sum())
                for batch, labels in zip(images.split(500), self.data.test_labels.split(500), strict=True)
            )
        return right / len(images)

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = _statistics(self.data)
        return normalized(images, mean, std)


def _options(work: Work, recipe: Recipe, width: int, compress: float | None) -> RunOptions:
    return RunOptions(
        work.model,
        work.data,
        recipe,
        compress,
        seed=work.seed,
        image_size=work.image_size,
        device="cpu",
        model_options={"width": width},
        test_each_epoch=False,
    )


def _statistics(data: ImageData) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(values).view(-1, 1, 1) for values in data.statistics())


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


class _Bar(Callback):
    """A progress bar over the steps of all epochs."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress = progress
        self.task = task

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.update(self.task, total=trainer.estimated_stepping_batches)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.progress.advance(self.task)
