"""The demonstration: one small network trained dense and at a quarter, a tenth and a twentieth of its size.

On scikit-learn's handwritten digits (1797 grey images of 8x8 pixels that ship with the library), a ResNet-8
is trained four times with one recipe. Each network is saved, loaded into a freshly built model and, if it is
compressed, lowered for deployment: what is measured on the deployed network went through the file.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import fxhash
from fxhash import zoo
from fxhash.training.latency import median_latencies
from fxhash.version import __version__

COMPRESSIONS = (0.25, 0.10, 0.05)

_SEED = 0
_BATCH_SIZE = 64
_PEAK_LEARNING_RATE = 2e-2
_LABEL_SMOOTHING = 0.1
# Calls timed for each batch size: enough for a steady median, few enough to take two seconds in all.
_TIMED_CALLS = {1: 200, 100: 50}


@dataclass(frozen=True)
class Images:
    """The data: images `(count, channels, height, width)` of zero mean and unit variance, labels `(count,)`."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Latency:
    """Median time of one forward call in milliseconds, and that time over the dense model's."""

    milliseconds: float
    ratio_to_dense: float


@dataclass(frozen=True)
class Result:
    """What was measured on one model.

    Attributes:
        name: `dense`, or the fraction of the parameters asked for, such as `10 %`.
        trainable_parameters: number of trainable parameters, everything counted.
        file_bytes: size of the saved file in bytes.
        trained_accuracy: fraction of the test images that the trained model gets right.
        deployed_accuracy: the same after saving, loading into a fresh model and lowering.
        largest_logit_difference: largest absolute difference between the logits of these two.
        latency: by batch size, how long the deployed model takes.
    """

    name: str
    trainable_parameters: int
    file_bytes: int
    trained_accuracy: float
    deployed_accuracy: float
    largest_logit_difference: float
    latency: Mapping[int, Latency]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model in eval mode, beside the same model as it came back from its file."""

    name: str
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
    """
    with _one_thread():
        return _run(output, epochs, console or Console())


def load_data() -> Images:
    """Load scikit-learn's digits; 30 % of each class, the same ones every time, are kept for the test."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = (
        torch.from_numpy(array)
        for array in train_test_split(images, labels, test_size=0.3, stratify=labels, random_state=_SEED)
    )
    mean, std = train_images.mean(), train_images.std()
    return Images(
        train_images=((train_images - mean) / std).float().view(-1, 1, 8, 8),
        train_labels=train_labels,
        test_images=((test_images - mean) / std).float().view(-1, 1, 8, 8),
        test_labels=test_labels,
    )


def train(
    model: nn.Module,
    data: Images,
    epochs: int,
    peak_learning_rate: float = _PEAK_LEARNING_RATE,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train `model` in place with Adam and a one-cycle learning rate, then put it in eval mode.

    Args:
        model: maps images to logits.
        data: its training part is used, in an order drawn from torch's global generator.
        epochs: passes over the training images.
        peak_learning_rate: the highest that the schedule reaches.
        after_step: called after each optimiser step.
    """
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak_learning_rate, total_steps=epochs * _steps_per_epoch(data)
    )
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_labels)).split(_BATCH_SIZE):
            logits = model(data.train_images[batch])
            loss = F.cross_entropy(logits, data.train_labels[batch], label_smoothing=_LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            after_step()
    model.eval()


def measure(models: Sequence[TrainedModel], data: Images) -> tuple[Result, ...]:
    """Measure every model on the test images; the first one is the one that latencies are compared with."""
    latencies = {
        batch_size: median_latencies([model.deployed for model in models], data.test_images[:batch_size], calls)
        for batch_size, calls in _TIMED_CALLS.items()
    }
    results = []
    for index, model in enumerate(models):
        with torch.inference_mode():
            trained_logits = model.trained(data.test_images)
            deployed_logits = model.deployed(data.test_images)
        results.append(
            Result(
                name=model.name,
                trainable_parameters=_count_trainable(model.trained),
                file_bytes=model.path.stat().st_size,
                trained_accuracy=_accuracy(trained_logits, data.test_labels),
                deployed_accuracy=_accuracy(deployed_logits, data.test_labels),
                largest_logit_difference=(trained_logits - deployed_logits).abs().max().item(),
                latency={
                    batch_size: Latency(1e3 * seconds[index], seconds[index] / seconds[0])
                    for batch_size, seconds in latencies.items()
                },
            )
        )
    return tuple(results)


def results_table(results: Sequence[Result]) -> Table:
    """Lay the results out in a table that fits 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption="latency: median of the deployed model, beside it the ratio to dense",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for heading in (
        "trainable\nparameters",
        "file\nkB",
        "trained\naccuracy",
        "deployed\naccuracy",
        "logits\ndiffer by",
        *(f"batch {batch_size}\nms (ratio)" for batch_size in _TIMED_CALLS),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.name,
            f"{result.trainable_parameters:,}",
            f"{result.file_bytes / 1e3:,.0f}",
            f"{result.trained_accuracy:.1%}",
            f"{result.deployed_accuracy:.1%}",
            f"{result.largest_logit_difference:.0e}",
            *(f"{entry.milliseconds:.2f} ({entry.ratio_to_dense:.2f})" for entry in result.latency.values()),
        )
    return table


def plot_accuracy(results: Sequence[Result], test_images: int, path: Path) -> None:
    """Draw the deployed models' test accuracy over their trainable parameters, as a PNG file.

    Bars show the standard error `sqrt(p * (1 - p) / test_images)` of each accuracy `p`.
    """
    sizes = [result.trainable_parameters for result in results]
    accuracies = [100 * result.deployed_accuracy for result in results]
    errors = [(accuracy * (100 - accuracy) / test_images) ** 0.5 for accuracy in accuracies]
    figure = Figure(figsize=(6, 4), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.plot(sizes, accuracies, color="0.7", zorder=1)
    axes.errorbar(sizes[:1], accuracies[:1], errors[:1], fmt="s", color="0.25", capsize=3)
    axes.errorbar(sizes[1:], accuracies[1:], errors[1:], fmt="o", color="tab:blue", capsize=3)
    for result, size, accuracy, error in zip(results, sizes, accuracies, errors, strict=True):
        axes.annotate(
            f"{result.name}\n{accuracy:.1f} %",
            (size, accuracy - error),
            xytext=(0, -8),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="top",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.12)
    # Five points at least, so that noise looks like noise; room for the labels below.
    bottom = min(95, 100 - 1.3 * (100 - min(accuracies)))
    axes.set_ylim(bottom, 100 + 0.1 * (100 - bottom))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("ResNet-8 on scikit-learn's digits, dense and with fxhash", fontsize=10)
    axes.grid(visible=True, color="0.93")
    axes.set_axisbelow(True)
    figure.savefig(path)


def _run(output: Path, epochs: int, console: Console) -> tuple[Result, ...]:
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    data = load_data()
    console.print(f"Training a ResNet-8 for {epochs} epochs a model on {len(data.train_labels)} handwritten digits")
    console.print(f"Testing on {len(data.test_labels)} others, of which one is {1 / len(data.test_labels):.1%}")
    models = []
    for compress in (None, *COMPRESSIONS):
        name = "dense" if compress is None else _percent(compress)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = _dense_model() if compress is None else _compressed_model(compress)
            _train_with_progress(name, model, data, epochs, console)
            models.append(_save_and_deploy(name, model, output))
    results = measure(models, data)
    _write_results(output / "results.json", results, epochs)
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


def _dense_model() -> nn.Module:
    return zoo.create("resnet8", in_channels=1, width=32)


def _compressed_model(compress: float) -> nn.Module:
    return fxhash.transform(_dense_model(), compress=compress, seed=_SEED)


def _train_with_progress(name: str, model: nn.Module, data: Images, epochs: int, console: Console) -> None:
    """Train behind a progress bar that gives way to one line, so that a log file holds only the line."""
    started = time.perf_counter()
    columns = (
        TextColumn("{task.description:>5}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=epochs * _steps_per_epoch(data))
        train(model, data, epochs, after_step=lambda: progress.advance(task))
    console.print(f"{name:>5}: trained in {time.perf_counter() - started:.1f} s")


def _save_and_deploy(name: str, model: nn.Module, output: Path) -> TrainedModel:
    """Write `model` to its file and build what is deployed from that file alone."""
    path = output / f"{name.replace(' %', '_percent')}.safetensors"
    fresh = _dense_model()
    if isinstance(model, torch.fx.GraphModule):
        fxhash.save(model, path)
        deployed: nn.Module = fxhash.lower_for_deploy(fxhash.load(path, fresh))
    else:
        safetensors.torch.save_file(model.state_dict(), path)
        fresh.load_state_dict(safetensors.torch.load_file(path))
        deployed = fresh.eval()
    return TrainedModel(name, model, deployed, path)


def _write_results(path: Path, results: Sequence[Result], epochs: int) -> None:
    report = {
        "command": f"fxhash demo --epochs {epochs}",
        "fxhash": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread used",
        "epochs": epochs,
        "seed": _SEED,
        "results": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _steps_per_epoch(data: Images) -> int:
    return -(-len(data.train_labels) // _BATCH_SIZE)


def _count_trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).double().mean().item()


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
