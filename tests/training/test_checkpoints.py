"""Checkpoints of a run: damage is noticed, nothing in them is run, and a run always goes on from one to its end."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from lightning.pytorch.callbacks import Callback
from typer.testing import CliRunner

from fxhash import cli, training
from fxhash.errors import CheckpointError, TrainingError
from fxhash.training.checkpoints import read_checkpoint, write_checkpoint
from fxhash.training.folder import configuration_digest, read_configuration
from tests.cli.helpers import assert_one_line
from tests.training.tiny import left_by, resume, tiny_options, train

TRAILER_BYTES = len("fxhash-sha256:") + 64
PARTS = {"state_dict": {}, "callbacks": {}, "loops": {}, "optimizer_states": [], "lr_schedulers": []}


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_options(images), folder)
    return folder


@pytest.fixture
def stopped(finished, tmp_path):
    """A run that was stopped after the first of its two epochs."""
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder)
    (folder / "checkpoints" / "previous.ckpt").replace(folder / "checkpoints" / "last.ckpt")
    for name in ("model.safetensors", "result.json"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def stopped_at_the_end(finished, tmp_path):
    """A run that was stopped after its last checkpoint."""
    folder = tmp_path / "ended"
    shutil.copytree(finished, folder)
    for name in ("model.safetensors", "result.json", "metrics.csv"):
        (folder / name).unlink()
    return folder


def last_of(folder):
    return folder / "checkpoints" / "last.ckpt"


def flip_bit(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def same(one, other):
    """Whether two checkpoints hold the same."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def is_same_or_refused(path, checkpoint, message):
    try:
        return same(read_checkpoint(path), checkpoint)
    except CheckpointError as error:
        return message in str(error)


def write_with_digest(path, content):
    """As somebody who knows the format would."""
    path.write_bytes(content + b"fxhash-sha256:" + hashlib.sha256(content).hexdigest().encode())


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint = {**PARTS, "state_dict": {"weight": torch.randn(3)}, "epoch": 1, "name": None}
    write_checkpoint(checkpoint, path)
    assert same(read_checkpoint(path), checkpoint)
    # By torch's own reader too.
    assert same(torch.load(path, weights_only=True), checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    write_checkpoint({**checkpoint, "epoch": 2}, path)
    assert read_checkpoint(path)["epoch"] == 2
    assert same(read_checkpoint(tmp_path / "previous.ckpt"), checkpoint)


@pytest.fixture(scope="module")
def checkpoint_file(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    return path, last_of(finished).read_bytes(), read_checkpoint(last_of(finished))


@given(st.integers(0, 2**31))
def test_a_flipped_bit_is_noticed(checkpoint_file, bit):
    path, content, checkpoint = checkpoint_file
    path.write_bytes(content)
    flip_bit(path, bit)
    # Or it is one of the mark before the digest: then torch's checksums tell that the rest is as it was.
    assert is_same_or_refused(path, checkpoint, "is damaged")


@given(st.integers(0, 2**31))
def test_a_torn_file_is_noticed(checkpoint_file, size):
    path, content, checkpoint = checkpoint_file
    path.write_bytes(content[: size % len(content)])
    assert is_same_or_refused(path, checkpoint, "is damaged")


@given(st.integers(0, 2**31))
def test_a_flipped_bit_of_an_older_file(checkpoint_file, bit):
    """Without a digest: the checksums cover what is read, though not the padding between."""
    path, content, checkpoint = checkpoint_file
    path.write_bytes(content[:-TRAILER_BYTES])
    flip_bit(path, bit)
    assert is_same_or_refused(path, checkpoint, "last.ckpt' is")


def test_a_write_that_went_wrong_unnoticed_keeps_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write_checkpoint(PARTS, path)
    content, read = path.read_bytes(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path)[:-1])
    with pytest.raises(OSError, match=r"last\.ckpt is not read back as it was written"):
        write_checkpoint({**PARTS, "epoch": 1}, path)
    monkeypatch.undo()
    assert path.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
@pytest.mark.parametrize("test_each_epoch", [False, True])
def test_a_run_stopped_after_its_last_checkpoint(ema_decay, test_each_epoch, images, tmp_path):
    options = replace(tiny_options(images, ema_decay=ema_decay), test_each_epoch=test_each_epoch)
    folder = tmp_path / "run"
    result = train(options, folder)
    left = left_by(folder)
    for name in ("model.safetensors", "result.json", "metrics.csv"):
        (folder / name).unlink()
    again = resume(folder)
    assert replace(again, seconds=result.seconds) == result
    assert left_by(folder) == left
    assert json.loads((folder / "result.json").read_text())["test_accuracy"] == result.test_accuracy


class Interrupted(Callback):
    """A signal in the second epoch."""

    def __init__(self, sent):
        self.sent = sent

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            signal.raise_signal(self.sent)


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also where it was ignored when the tests started, as a shell does for what it
    runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.usefixtures("interruptible")
def test_a_run_stopped_by_its_user(sent, images, finished, tmp_path, monkeypatch):
    handlers, folder = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)], tmp_path / "run"
    quiet = {"console": Console(quiet=True), "callbacks": [Interrupted(sent)]}
    with pytest.raises(KeyboardInterrupt):
        training.train(tiny_options(images), folder, **quiet)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    resume(folder)
    assert left_by(folder) == left_by(finished)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fxhash.training.resume", interrupted)
    result = CliRunner().invoke(cli.create_app(), ["train", "--resume", "--output", str(folder)])
    assert_one_line(
        result, f"the run in {str(folder)!r} was stopped: to go on, fxhash train --resume --output {folder}", status=1
    )


def test_a_device_that_is_not_there(images, stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, message in (("x", "the device 'x' is unknown: give auto, cpu or cuda"), ("cuda", "has no CUDA device")):
        with pytest.raises(TrainingError, match=message):
            train(replace(tiny_options(images), device=device), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    path = stopped / "run.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cqu"'))
    with pytest.raises(TrainingError, match="the device 'cqu' is unknown"):
        resume(stopped)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(finished, stopped_at_the_end):
    folder = stopped_at_the_end
    flip_bit(last_of(folder), 123_456)
    with Console(record=True, width=60, quiet=False, file=io.StringIO()) as console:
        resume(folder, console)
    printed = console.export_text().splitlines()
    assert printed[0] == (
        f"{str(last_of(folder))!r} is damaged: its content does not have the digest that was stored with it; "
        "going on from previous.ckpt, the one before"
    )
    assert left_by(folder) == left_by(finished)


def test_a_damaged_checkpoint_alone(finished, stopped):
    flip_bit(last_of(stopped), 123_456)
    result = CliRunner().invoke(cli.create_app(), ["train", "--resume", "--output", str(stopped)])
    line = (
        f"{str(last_of(stopped))!r} is damaged: its content does not have the digest that was stored with it; to train "
        f"from the start with --resume, delete the folder {str(stopped / 'checkpoints')!r}"
    )
    assert_one_line(result, line, status=1)
    shutil.rmtree(stopped / "checkpoints")
    resume(stopped)
    assert left_by(stopped) == left_by(finished)


def test_a_checkpoint_of_another_run(images, stopped, tmp_path):
    train(tiny_options(images, epochs=3), tmp_path / "other")
    shutil.copy(last_of(tmp_path / "other"), last_of(stopped))
    with pytest.raises(CheckpointError, match=r"last\.ckpt' is a checkpoint of another run; to train from the start"):
        resume(stopped)


def test_a_run_of_an_older_version_goes_on(finished, stopped):
    """Without a digest, the name of the run, or counted bytes; and without a digest of the configuration."""
    checkpoint = read_checkpoint(last_of(stopped))
    del checkpoint["fxhash_run"], checkpoint["callbacks"]["GradientBytes"]
    torch.save(checkpoint, last_of(stopped))
    configuration = json.loads((stopped / "run.json").read_text())
    del configuration["sha256"]
    (stopped / "run.json").write_text(json.dumps(configuration))
    resume(stopped)
    assert left_by(stopped) == left_by(finished)


class Hostile:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def zipped(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def not_zipped(value):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("write", [write_with_digest, Path.write_bytes])
@pytest.mark.parametrize("pickled", [zipped, not_zipped, pickle.dumps])
def test_code_in_a_checkpoint_is_not_run(write, pickled, stopped, tmp_path):
    trace = tmp_path / "was run"
    hostile = {**PARTS, "hyper_parameters": Hostile(trace)}
    write(last_of(stopped), pickled(hostile))
    result = CliRunner().invoke(cli.create_app(), ["train", "--resume", "--output", str(stopped)])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "delete the folder" in result.stderr
    assert not trace.exists()
    pickle.loads(pickle.dumps(Hostile(trace)))
    assert trace.exists()


@pytest.mark.parametrize("content", [7, {}, {**PARTS, "callbacks": []}, {"state_dict": {}}])
def test_plain_values_that_are_no_checkpoint(content, stopped):
    write_with_digest(last_of(stopped), zipped(content))
    with pytest.raises(CheckpointError, match="is no checkpoint of a run: it lacks some of state_dict, callbacks"):
        resume(stopped)


@given(st.integers(0, 2**31))
def test_a_flipped_bit_of_the_configuration(finished, tmp_path_factory, bit):
    """Is noticed, or changes nothing that decides the weights."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copy(finished / "run.json", folder)
    _, configuration = read_configuration(folder)
    flip_bit(folder / "run.json", bit)
    with suppress(TrainingError):
        assert configuration_digest(read_configuration(folder)[1]) == configuration_digest(configuration)


@pytest.mark.parametrize("content", ["", "[]", "7", '"x"', "[" * 100_000, '{"options": 1}', "\0", "1" * 5000])
def test_a_configuration_that_is_none(content, finished, tmp_path):
    (tmp_path / "run.json").write_text(content)
    result = CliRunner().invoke(cli.create_app(), ["train", "--resume", "--output", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"fxhash: error: '{tmp_path / 'run.json'}' can't be read: ")
    assert result.stderr.count("\n") == 1


def test_another_seed_in_the_configuration(stopped):
    path = stopped / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(TrainingError, match="don't have the digest that was stored with them: restore it, or start a "):
        resume(stopped)


def test_a_run_may_be_moved_with_its_images(finished, images, stopped, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    path = stopped / "run.json"
    path.write_text(path.read_text().replace(str(images), str(moved)))
    resume(stopped)
    assert left_by(stopped) == left_by(finished)


def test_damaged_curves_are_written_anew(finished, stopped, stopped_at_the_end):
    for folder in (stopped, stopped_at_the_end):
        (folder / "metrics.csv").write_text("epoch\nmuch")
        resume(folder)
        assert left_by(folder) == left_by(finished)
