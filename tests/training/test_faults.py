"""A run whose disk fails, or which is killed, at each write, flush and rename: it goes on to the same weights."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
from itertools import count
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from fxhash.training.lock import FolderError
from tests.training.faults import KINDS, Fault, fail, train_until_killed
from tests.training.tiny import left_by, resume, tiny_options, train

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """What a run leaves that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_options(images), folder)
    return left_by(folder)


def go_on(options, folder):
    """Do what the command would be told: go on, or start where no run was begun."""
    if not (folder / "result.json").exists():
        resume(folder) if (folder / "run.json").exists() else train(options, folder)


@pytest.mark.parametrize(("kind", "compress"), [("write", 0.3), ("flush", None), ("rename", None)])
def test_a_run_goes_on_after_any_failure_to_write(kind, compress, images, tmp_path, monkeypatch):
    """A dense model trains faster, but its file is not written by Python."""
    options = tiny_options(images, compress)
    train(options, tmp_path / "whole")
    whole = left_by(tmp_path / "whole")
    for nth in count(1):
        folder = tmp_path / str(nth)
        fault = Fault(folder, kind, nth, fail)
        message = None
        with monkeypatch.context() as patch:
            fault.install(patch.setattr)
            try:
                train(options, folder)
            except FolderError as error:
                message = str(error)
        if not fault.happened:
            break
        assert not list(folder.rglob("*.partial"))
        if message is not None:
            assert "\n" not in message
            assert message.startswith(f"can't write to {str(folder)!r}: [Errno 28] No space left on device; ")
            how = "go on with --resume" if (folder / "run.json").exists() else "start again"
            assert message.endswith(f"then {how}")
        go_on(options, folder)
        assert left_by(folder) == whole, f"{kind} {nth}"
    # The configuration, two rows of curves, two checkpoints, the model and the result.
    assert nth > 7


KILLS = multiprocessing.get_context("forkserver") if sys.platform != "win32" else None


@pytest.fixture(scope="module")
def _quick_kills():
    """Import what training needs once, in a process that those to be killed are forked from."""
    KILLS.set_forkserver_preload(["fxhash.training.run", "tests.training.faults", "torchvision"])


def train_and_kill(options, folder, kind, nth, temporary):
    """Whether the run was killed, and not finished before."""
    process = KILLS.Process(target=train_until_killed, args=(options, folder, kind, nth, temporary))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def assert_goes_on_after_kill(options, folder, kind, nth, temporary, whole):
    killed = train_and_kill(options, folder, kind, nth, temporary)
    go_on(options, folder)
    assert left_by(folder) == whole, f"{kind} {nth}"
    assert not list(folder.rglob("*.partial"))
    assert not list(temporary.iterdir())
    return killed


@pytest.mark.skipif(KILLS is None, reason="signals are POSIX")
@pytest.mark.usefixtures("_quick_kills")
@pytest.mark.parametrize(("kind", "nth"), [("rename", 1), ("write", 3), ("rename", 5), ("rename", 8)])
def test_a_run_goes_on_after_kill(kind, nth, images, whole, tmp_path):
    """In turn: before the configuration has its name, within the first checkpoint, between the second one and the one
    before, and before the result."""
    (tmp_path / "temporary").mkdir()
    folder = tmp_path / "run"
    assert assert_goes_on_after_kill(tiny_options(images), folder, kind, nth, tmp_path / "temporary", whole)


@pytest.mark.slow
@pytest.mark.skipif(KILLS is None, reason="signals are POSIX")
@pytest.mark.usefixtures("_quick_kills")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_after_any_kill(kind, images, whole, tmp_path):
    (tmp_path / "temporary").mkdir()
    for nth in count(1):
        if not assert_goes_on_after_kill(
            tiny_options(images), tmp_path / str(nth), kind, nth, tmp_path / "temporary", whole
        ):
            break
    assert nth > 7


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another file system than `tmp_path`."""
    if not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(KILLS is None, reason="signals are POSIX")
@pytest.mark.usefixtures("_quick_kills")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run_is_elsewhere", [False, True])
def test_any_kill_with_two_file_systems(kind, run_is_elsewhere, images, whole, tmp_path, elsewhere):
    runs, temporary = (elsewhere / "runs", tmp_path) if run_is_elsewhere else (tmp_path / "runs", elsewhere)
    for nth in count(1):
        if not assert_goes_on_after_kill(tiny_options(images), runs / str(nth), kind, nth, temporary, whole):
            break
    assert nth > 7


def test_the_folder_for_temporary_files_is_not_used(images, whole, tmp_path, monkeypatch):
    """From there a checkpoint would be copied where that is another file system, and torn if the copy is stopped."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    train(tiny_options(images), tmp_path / "run")
    assert left_by(tmp_path / "run") == whole
