"""The progress bar of a run in a terminal: one line below the epochs that are done."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class EpochBar(Callback):
    """Shows which epoch is computed, how much of the run is done, and the time until its end.

    In a terminal it is the last line, which is redrawn in place and gone at the end; what is printed on the same
    console comes above it. Elsewhere (a file, a pipe, a notebook) nothing is drawn: there each epoch is one line.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, transient=True)
        self.task = self.progress.add_task("", total=None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar, from where a resumed run goes on."""
        if trainer.is_global_zero and self.progress.console.is_terminal:
            total = int(trainer.estimated_stepping_batches)
            self.progress.update(self.task, total=total, completed=trainer.global_step)
            self.progress.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch."""
        self.progress.update(self.task, description=f"{trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count a step."""
        self.progress.advance(self.task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar, so that the terminal's cursor is shown again."""
        self._stop()

    def _stop(self) -> None:
        # What was not started would leave an empty line in a file.
        if self.progress.live.is_started:
            self.progress.stop()
