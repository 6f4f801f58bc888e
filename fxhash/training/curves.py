"""The curves of a run: losses, accuracy, learning rate and time of each epoch."""

from __future__ import annotations

import csv
import time
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import nn

from fxhash.training.folder import write_text
from fxhash.training.parameter_counts import trainable_parameters, trainable_parameters_before


class Curves(Callback):
    """Prints the size of the model and a line for each epoch with a test, and writes the same to a file.

    A resumed run continues the file.

    Args:
        console: where to print.
        model: what is trained.
        path: the `.csv` file, which is replaced after each epoch.
    """

    def __init__(self, console: Console, model: nn.Module, path: Path) -> None:
        self.console = console
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        after, before = trainable_parameters(model), trainable_parameters_before(model)
        share = f" of {before:,} ({after / before:.2%})" if after < before else ""
        self.size = f"{after:,} trainable parameters{share}"

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and the seconds since the last of them, for a checkpoint."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the rows of a checkpoint."""
        self.rows = state_dict["rows"]
        self.seconds = state_dict.get("seconds", 0.0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the size and the heading."""
        if trainer.is_global_zero:
            self.console.print(self.size)
            self.console.print(f"{'epoch':>9}  {'train loss':>10}  {'test loss':>9}  {'accuracy':>8}  {'seconds':>7}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a test, add a row, print it, and write all of them."""
        self.seconds += time.perf_counter() - self.started
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            return
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        row |= {name: float(trainer.callback_metrics[name]) for name in ("train_loss", "test_loss", "test_accuracy")}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(self.seconds, 2)
        self.seconds = 0.0
        self.rows.append(row)
        if trainer.is_global_zero:
            self.write()
            epoch = f"{row['epoch']}/{trainer.max_epochs}"
            self.console.print(
                f"{epoch:>9}  {row['train_loss']:>10.4f}  {row['test_loss']:>9.4f}  {row['test_accuracy']:>8.2%}  "
                f"{row['seconds']:>7.1f}",
                highlight=False,
            )

    def write(self) -> None:
        """Write the rows so far to the file."""
        with StringIO() as text:
            writer = csv.DictWriter(text, self.rows[-1], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.path, text.getvalue())
