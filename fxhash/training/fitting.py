"""Lightning's loop around a classifier: how a run is computed, and what it leaves in its folder."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from fxhash.training.batches import load_batches
from fxhash.training.checkpoints import RunCheckpoints
from fxhash.training.classifier import Classifier
from fxhash.training.curves import Curves
from fxhash.training.data import ImageData
from fxhash.training.folder import CURVES, MODEL, RESULT, save_model, write_text
from fxhash.training.gradient_bytes import GradientBytes
from fxhash.training.options import RunOptions, RunResult
from fxhash.training.parameter_counts import trainable_parameters, trainable_parameters_before
from fxhash.training.processes import end_when_told, is_first_process, process_count, process_count_here, rank
from fxhash.training.progress import EpochBar
from fxhash.training.quiet import quiet_lightning

_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
_TEST_BATCH_SIZE = 500


def fit(
    classifier: Classifier,
    options: RunOptions,
    data: ImageData,
    folder: Path,
    checkpoints: RunCheckpoints,
    checkpoint: tuple[Path, dict[str, Any]] | None,
    console: Console,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train a classifier in place, and write its checkpoints, curves, model and result.

    The global random generator of the CPU is left as it was.

    Args:
        classifier: the model, and how to train it.
        options: what was asked for.
        data: images for training and for the test.
        folder: the folder of the run.
        checkpoints: how checkpoints are written and read.
        checkpoint: from which to go on, and its content; None for a new run.
        console: where to print; in a terminal there is a progress bar too.
        callbacks: further callbacks of Lightning.

    Raises:
        TrainingError: if the loss is not finite.
        OSError: if a file can't be written.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the checkpoint of the last epoch is complete.
    """
    model, processes = classifier.model.model, process_count()
    curves, counter = Curves(console, model, folder / CURVES), GradientBytes()
    started = time.perf_counter()
    path, content = checkpoint or (None, None)
    with quiet_lightning(), torch.random.fork_rng(devices=[]):
        if content is None or not _restore_trained(classifier, options, content, curves, counter):
            trainer = _trainer(options, folder, console, checkpoints, [curves, counter, *callbacks])
            _train(trainer, classifier, options, data, path)
    before, last = trainable_parameters_before(model), curves.rows[-1]
    result = RunResult(
        trainable_before=before,
        trainable_after=trainable_parameters(model),
        test_accuracy=last["test_accuracy"],
        test_loss=last["test_loss"],
        epochs=options.recipe.epochs,
        seconds=round(time.perf_counter() - started, 1),
        gradient_bytes=counter.bytes_a_step,
        dense_gradient_bytes=4 * before if processes > 1 else 0,
    )
    if is_first_process():
        save_model(model, folder / MODEL)
        write_text(folder / RESULT, json.dumps(asdict(result), indent=1) + "\n")
    return result


def tested_epochs(content: Mapping[str, Any]) -> int:
    """After how many epochs the last test of a checkpoint was; 0 if there was none yet."""
    rows = content["callbacks"].get(Curves.__qualname__, {}).get("rows")
    return int(rows[-1]["epoch"]) if rows else 0


def _restore_trained(
    classifier: Classifier, options: RunOptions, content: dict[str, Any], curves: Curves, counter: GradientBytes
) -> bool:
    """Restore the trained model from a checkpoint that is the last one of its run; else leave all as it is.

    Lightning does nothing with such a checkpoint: it neither tests nor ends the average of the weights, which is what
    a checkpoint has as its state dict.
    """
    states = content["callbacks"]
    if tested_epochs(content) < options.recipe.epochs:
        return False
    classifier.load_state_dict(content["state_dict"])
    curves.load_state_dict(states[curves.state_key])
    if counter.state_key in states:  # of an older version
        counter.load_state_dict(states[counter.state_key])
    if is_first_process():
        curves.write()
    return True


def _train(
    trainer: Trainer, classifier: Classifier, options: RunOptions, data: ImageData, checkpoint: Path | None
) -> None:
    processes, batch_size = process_count(), options.recipe.batch_size
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            classifier,
            load_batches(data.train_images, data.train_labels, batch_size, processes, rank(), seed=options.seed),
            load_batches(data.test_images, data.test_labels, _TEST_BATCH_SIZE, processes, rank()),
            ckpt_path=checkpoint,
            weights_only=True,
        )
    except SystemExit as stopped:
        # Lightning exits in silence: with status 0 after SIGTERM; after Ctrl-C, of which it ignores all further ones.
        if isinstance(stopped, SIGTERMException):
            raise KeyboardInterrupt from None
        if isinstance(stopped.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from None
        raise


def _trainer(
    options: RunOptions, folder: Path, console: Console, checkpoints: RunCheckpoints, callbacks: list[Callback]
) -> Trainer:
    recipe = options.recipe
    if recipe.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema_decay))
    callbacks.append(
        ModelCheckpoint(folder / "checkpoints", "last", enable_version_counter=False, save_on_train_epoch_end=True)
    )
    callbacks.append(EpochBar(console))
    # Lightning has set its own handler by then.
    callbacks.append(LambdaCallback(on_train_start=lambda *_: end_when_told()))
    processes = process_count()
    return Trainer(
        accelerator={"cuda": "gpu"}.get(options.device, options.device),
        devices=process_count_here(),
        num_nodes=processes // process_count_here(),
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=recipe.epochs,
        precision=_PRECISIONS[recipe.precision],
        gradient_clip_val=recipe.clip_gradients or None,
        callbacks=callbacks,
        plugins=[checkpoints],
        logger=TensorBoardLogger(folder, name="tensorboard", version="") if options.tensorboard else False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=1 if options.test_each_epoch else recipe.epochs,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
