"""What `fxhash train` prints: in a real terminal, into a pipe, and in a notebook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from io import StringIO

import pytest
from rich.console import Console

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from fxhash import training
from fxhash.errors import TrainingError
from tests.cli.helpers import run as run_command
from tests.training.tiny import tiny_options, write_images

EPOCHS = 3
ROW = re.compile(r" +(\d+)/(\d+)  +\d+\.\d{4}  +\d+\.\d{4}  +\d+\.\d{2}%  +\d+\.\d")
BAR = re.compile(r" +(\d+)/\d+ [━╸╺ ]+ +\d+ %")
# On a fast machine it is drawn and cleared again within a piece.
BEFORE_A_BAR_IS_CLEARED = re.compile(rb"(?=\r\x1b\[1A)")
HEADING = "    epoch  train loss  test loss  accuracy  seconds"


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


def command(images, folder, *arguments):
    return [
        *("train", "--model", "resnet8", "--data", f"imagefolder:{images}", "--compress", "0.3"),
        *("--epochs", str(EPOCHS), "--batch-size", "3", "--device", "cpu", "--output", str(folder), *arguments),
    ]


# Runs the command in terminals of several widths, one after the other: importing torch takes longer than to train.
IN_TERMINALS = """
import fcntl, json, struct, sys, termios
from fxhash.cli import create_app
for columns, arguments in json.loads(sys.argv[1]):
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    create_app()(arguments, standalone_mode=False)
    print("\\0", flush=True, end="")
"""


def in_terminals(commands):
    """What commands write in pseudo-terminals of these numbers of columns, in the pieces as they come."""
    import pty

    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "TERM": "xterm-256color"}
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINALS, json.dumps(commands)],
        env=environment,
        stdin=child,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    written = [[]]
    # Linux says with an error that the other end is closed, others by no more bytes.
    with suppress(OSError):
        while piece := os.read(parent, 65536):
            before, *after = piece.split(b"\0")
            written[-1].append(before)
            written.extend([each] for each in after)
    os.close(parent)
    assert process.wait() == 0, written
    return dict(zip([columns for columns, _ in commands], written, strict=False))


def lines_of(screen):
    return [line.rstrip() for line in screen.display if line.strip()]


@pytest.fixture(scope="module")
def terminals(tmp_path_factory):
    if sys.platform == "win32":
        pytest.skip("pseudo-terminals are POSIX")
    folder = tmp_path_factory.mktemp("terminals")
    images = write_images(folder / "images")
    return in_terminals([(columns, command(images, folder / str(columns))) for columns in (80, 120)])


@pytest.mark.parametrize("columns", [80, 120])
def test_a_line_an_epoch_in_a_terminal(columns, terminals):
    pyte = pytest.importorskip("pyte")
    screen = pyte.Screen(columns, 24)
    stream = pyte.ByteStream(screen)
    seen, bars = [], []
    for shown in (shown for piece in terminals[columns] for shown in BEFORE_A_BAR_IS_CLEARED.split(piece)):
        stream.feed(shown)
        lines = lines_of(screen)
        rows = [line for line in lines if ROW.fullmatch(line)]
        # What stands there stays as it is: each epoch is one line more.
        assert rows[: len(seen)] == seen
        seen = rows
        drawn = [line for line in lines if BAR.match(line)]
        assert len(drawn) <= 1, lines
        bars.extend(int(BAR.match(line)[1]) for line in drawn)
    assert [ROW.fullmatch(line)[1] for line in seen] == [str(epoch + 1) for epoch in range(EPOCHS)]
    size, heading, *rows, accuracy, run = lines_of(screen)[: EPOCHS + 4]
    assert re.fullmatch(r"[\d,]+ trainable parameters of [\d,]+ \(\d+\.\d\d%\)", size)
    assert heading == HEADING
    assert rows == seen
    assert "of the test images" in accuracy
    assert run.startswith("run: ")
    # The bar counts each epoch once, and no further than there are.
    assert bars == sorted(bars)
    # It is drawn some times a second: a short epoch may pass between two of these.
    assert bars
    assert set(bars) <= set(range(1, EPOCHS + 1))
    assert not screen.cursor.hidden


def test_a_line_an_epoch_in_a_pipe(images, tmp_path):
    result = run_command(*command(images, tmp_path / "run"))
    size, heading, *rows, accuracy, run = result.stdout.splitlines()
    assert "trainable parameters of" in size
    assert heading == HEADING
    assert [ROW.fullmatch(row)[1] for row in rows] == [str(epoch + 1) for epoch in range(EPOCHS)]
    assert "of the test images" in accuracy
    assert run == f"run: {tmp_path / 'run'}"
    assert result.stderr == ""
    assert "\x1b" not in result.stdout


def test_a_line_an_epoch_in_a_notebook(images, tmp_path, monkeypatch):
    """Without ipywidgets, which rich asks for to draw a bar there."""
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    shown = []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    console = Console(force_jupyter=True, file=StringIO())
    training.train(tiny_options(images), tmp_path / "run", console=console)
    size, heading, *rows = "".join(shown).splitlines()
    assert "trainable parameters" in size
    assert heading == HEADING
    assert [ROW.fullmatch(row)[1] for row in rows] == ["1", "2"]


def test_a_run_that_fails_shows_the_cursor_again(images, tmp_path):
    console = Console(file=StringIO(), force_terminal=True, width=80)
    with pytest.raises(TrainingError, match="the loss is"):
        training.train(
            tiny_options(images, learning_rate=1e30, optimizer="sgd", epochs=9), tmp_path / "run", console=console
        )
    written = console.file.getvalue()
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1
