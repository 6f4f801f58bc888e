"""Runs that go on: for more epochs, elsewhere, and not as another run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from rich.console import Console

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from fxhash import training
from fxhash.errors import TrainingError
from fxhash.training.checkpoints import read_checkpoint, write_checkpoint
from fxhash.training.folder import read_configuration
from tests.training.tiny import left_by, tiny_options, train


def test_a_finished_run_goes_on_with_more_epochs(images, tmp_path, monkeypatch):
    """Its first epochs stay, the learning rate goes on where a longer run would be, and a crash loses nothing."""
    folder, console = tmp_path / "run", Console(quiet=True)
    train(tiny_options(images), folder)
    before, (model, two) = read_configuration(folder)[0], left_by(folder)
    for epochs in (1, 2):
        with pytest.raises(TrainingError, match=r"is finished: .* add --epochs with more than 2$"):
            training.resume(folder, console=console, changes={"epochs": epochs})
    assert left_by(folder) == (model, two)

    def fail(*_, **__):
        raise RuntimeError("an accident")

    with monkeypatch.context() as patched:
        patched.setattr("fxhash.training.run.fit", fail)
        with pytest.raises(RuntimeError, match="an accident"):
            training.resume(folder, console=console, changes={"epochs": 5})
    assert left_by(folder) == (model, two)
    assert (folder / "result.json").exists()
    result = training.resume(folder, console=console)
    assert result.epochs == 5
    _, five = left_by(folder)
    assert five[:2] == two
    assert [row["epoch"] for row in five] == ["1", "2", "3", "4", "5"]
    train(tiny_options(images, epochs=5), tmp_path / "longer")
    _, longer = left_by(tmp_path / "longer")
    assert [row["learning_rate"] for row in five[2:]] == [row["learning_rate"] for row in longer[2:]]
    assert read_configuration(folder)[0] == replace(before, recipe=replace(before.recipe, epochs=5))
    again = training.resume(folder, console=console, changes={"epochs": 6})
    assert again.epochs == 6


def test_what_may_not_change(images, tmp_path):
    train(tiny_options(images), tmp_path / "run")
    with pytest.raises(TrainingError, match="can't change seed, batch_size: start a new one in another folder"):
        training.resume(tmp_path / "run", changes={"epochs": 5, "seed": 1, "batch_size": 2})


def test_no_fewer_epochs_than_there_are(images, tmp_path):
    folder = tmp_path / "run"
    train(tiny_options(images), folder)
    (folder / "result.json").unlink()
    before = (folder / "run.json").read_bytes()
    for epochs in (1, 2):
        # The last of two epochs is written; without its test, a run can't end there.
        content = read_checkpoint(folder / "checkpoints" / "last.ckpt")
        untested = {
            name: {**state, "rows": []} if "rows" in state else state for name, state in content["callbacks"].items()
        }
        write_checkpoint({**content, "callbacks": untested}, folder / "checkpoints" / "last.ckpt")
        with pytest.raises(TrainingError, match="was trained for 2 epochs already: give more than that to --epochs"):
            training.resume(folder, changes={"epochs": epochs})
    assert (folder / "run.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_process_is_left(sent, images, tmp_path):
    """Of two that train together, after the one that started them was told to end, or killed."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "fxhash", "train", "--model", "resnet8", "--processes", "2", "--epochs", "500"]
    process = subprocess.Popen(
        [*command, "--data", f"imagefolder:{images}", "--output", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 120
        while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.01)
        # Ctrl-C goes to all of them.
        (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
        # The pipe ends when the last process that could write to it does.
        _, stderr = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    line = f"fxhash: error: the run in {str(folder)!r} was stopped: to go on, fxhash train --resume --output {folder}\n"
    # Where the first was killed, the others may say before they end that they have lost each other.
    assert sent == signal.SIGKILL or stderr.decode() == line
