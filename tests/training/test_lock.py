"""One run at a time in a folder, and a folder that is free again when its process is dead."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import count

import pytest
from rich.console import Console

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from filelock import FileLock
from typer.testing import CliRunner

from fxhash import cli
from fxhash.errors import TrainingError
from fxhash.training.lock import FolderError, claimed
from tests.cli.helpers import assert_one_line
from tests.training.tiny import left_by, resume, tiny_options, train

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_options(images), folder)
    return folder


@pytest.fixture(scope="module")
def whole(finished):
    return left_by(finished)


@pytest.fixture
def stopped(finished, tmp_path):
    """A run that was stopped after its last checkpoint."""
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder)
    for name in ("model.safetensors", "result.json"):
        (folder / name).unlink()
    return folder


def message(folder):
    return (
        f"another process is training in {str(folder)!r}: wait until it ends, or stop it; a new run needs another "
        "--output"
    )


def test_a_live_run_is_neither_resumed_nor_joined(images, whole, stopped, tmp_path):
    with claimed(stopped, QUIET):
        result = CliRunner().invoke(cli.create_app(), ["train", "--resume", "--output", str(stopped)])
        assert_one_line(result, message(stopped), status=1)
    resume(stopped)
    assert left_by(stopped) == whole
    # One that has not written its configuration yet.
    with claimed(tmp_path / "new", QUIET), pytest.raises(TrainingError) as caught:
        train(tiny_options(images), tmp_path / "new")
    assert str(caught.value) == message(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.lock"]
    train(tiny_options(images), tmp_path / "new")
    assert left_by(tmp_path / "new") == whole


def test_a_run_that_ended_while_another_one_began(images, tmp_path, monkeypatch):
    """Both looked into the folder before either wrote: the second must not write over the first."""
    from fxhash.training import run

    folder, build = tmp_path / "run", run._build_classifier

    def overtaken(*arguments):
        monkeypatch.setattr(run, "_build_classifier", build)
        train(tiny_options(images), folder)
        return build(*arguments)

    monkeypatch.setattr(run, "_build_classifier", overtaken)
    with pytest.raises(TrainingError, match="holds a run already"):
        train(tiny_options(images, epochs=1), folder)
    assert len(left_by(folder)[1]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_the_lock_of_a_killed_process_is_free_at_once(whole, stopped):
    holds = "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
    holds += "print(flush=True); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", holds, stopped / "run.lock"], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(TrainingError, match="another process is training"):
        resume(stopped)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resume(stopped)
    assert left_by(stopped) == whole


def test_the_first_process_of_several_has_the_lock(stopped, monkeypatch):
    with claimed(stopped, QUIET):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        with claimed(stopped, QUIET):
            monkeypatch.setenv("RANK", "0")
            with pytest.raises(TrainingError, match="another process"), claimed(stopped, QUIET):
                pass


def test_what_a_killed_process_left_is_removed(images, tmp_path):
    some = "0123456789abcdef" * 2
    left = [tmp_path / f".run.json.{some}.partial", tmp_path / "checkpoints" / f".last.ckpt.{some}.partial"]
    (tmp_path / "checkpoints").mkdir()
    for path in left:
        path.write_text("half")
    with claimed(tmp_path, QUIET):
        pass
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock here")])
def test_a_file_system_without_locks(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", fail)
    printed = io.StringIO()
    with claimed(tmp_path / "run", Console(file=printed, width=500)):
        (tmp_path / "run" / "run.json").write_text("{}")
    assert "has no locks: start no other run in this folder" in printed.getvalue()


def test_a_folder_that_can_not_be_made(images, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(FolderError, match=r"can't write to '.*': .*; no run was begun: .* then start again$"):
            train(tiny_options(images), folder)


def command(*arguments):
    return [sys.executable, "-m", "fxhash", "train", *map(str, arguments)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
DIGITS = ("--model", "resnet8", "--compress", "0.3", "--epochs", "4")


@pytest.mark.slow
def test_two_commands_at_once(tmp_path):
    """One of them trains, as if it were alone; the other one says that it can't, and so does --resume meanwhile."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    pipes = {"env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command(*DIGITS, "--output", both), **pipes) for _ in range(2)]
    ends = [(process.wait(), process.communicate()[1]) for process in processes]
    (code, stderr), (other_code, other_stderr) = sorted(ends)
    assert (code, stderr) == (0, "")
    assert other_code == 1
    assert other_stderr.count("\n") == 1
    assert "another process is training in" in other_stderr or "holds a run already" in other_stderr
    subprocess.run(command(*DIGITS, "--output", alone), env=ENVIRONMENT, check=True, capture_output=True)
    assert left_by(both) == left_by(alone)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_two_processes_that_are_killed_go_on(tmp_path):
    """Neither of the two that train together is in the other's way; the run also ends where no step is left."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    two = (*DIGITS, "--processes", 2)
    subprocess.run(command(*two, "--output", alone), env=ENVIRONMENT, check=True, capture_output=True)
    process = subprocess.Popen(
        command(*two, "--output", together),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for _ in count():
        if (together / "checkpoints" / "last.ckpt").exists():
            break
        time.sleep(0.005)
    live = subprocess.run(
        command("--resume", "--output", together, "--processes", 2), env=ENVIRONMENT, capture_output=True, text=True
    )
    if process.poll() is None:
        assert live.returncode == 1
        assert live.stderr.startswith(f"fxhash: error: {message(together)}")
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for name in ("model.safetensors", "result.json"):
        (together / name).unlink(missing_ok=True)
    resumed = command("--resume", "--output", together, "--processes", 2)
    subprocess.run(resumed, env=ENVIRONMENT, check=True, capture_output=True)
    assert left_by(together) == left_by(alone)
    result = (together / "result.json").read_text()
    for name in ("model.safetensors", "result.json"):
        (together / name).unlink()
    subprocess.run(resumed, env=ENVIRONMENT, check=True, capture_output=True)
    assert left_by(together) == left_by(alone)
    assert [line for line in (together / "result.json").read_text().splitlines() if "seconds" not in line] == [
        line for line in result.splitlines() if "seconds" not in line
    ]
