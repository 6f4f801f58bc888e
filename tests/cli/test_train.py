"""`fxhash train`: what its options become."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from fxhash.training import Recipe, RunOptions, RunResult, load_recipe
from tests.cli.helpers import assert_one_line, run

RESULT = RunResult(2000, 1000, 0.5, 1.0, epochs=1, seconds=1.0, gradient_bytes=0, dense_gradient_bytes=0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command calls the training with, which trains nothing here."""
    made: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> RunResult:
        made.append(arguments)
        return RESULT

    monkeypatch.setattr("fxhash.training.train", record)
    monkeypatch.setattr("fxhash.training.resume", record)
    return made


def test_without_options(calls: list[tuple[Any, ...]]) -> None:
    result = run("train", "--model", "resnet8")
    assert result.stdout == "50.00% of the test images, 1,000 trainable parameters of 2,000\nrun: fxhash-run\n"
    assert calls == [(RunOptions("resnet8", "digits", load_recipe("digits")), Path("fxhash-run"), False)]


def test_all_options_but_those_of_the_recipe(calls: list[tuple[Any, ...]]) -> None:
    """Those of the recipe: `test_every_option_of_a_recipe_reaches_the_run`."""
    result = run(
        *("train", "--model", "vit_tiny", "--data", "imagefolder:images", "--compress", "0.2", "--start", "dense"),
        *("--teacher", "large", "--output", "there", "--seed", "3", "--device", "cpu", "--data-folder", "sets"),
        *("--image-size", "24", "--download", "--tensorboard", "--processes", "1"),
    )
    assert result.exit_code == 0
    options = RunOptions(
        model="vit_tiny",
        data="imagefolder:images",
        recipe=load_recipe("small-images"),
        compress=0.2,
        start="dense",
        teacher="large",
        seed=3,
        data_folder="sets",
        image_size=24,
        device="cpu",
        tensorboard=True,
    )
    assert calls == [(options, Path("there"), True)]


def test_a_recipe_by_name_with_a_change(calls: list[tuple[Any, ...]]) -> None:
    assert run("train", "--model", "resnet8", "--recipe", "small-images", "--no-flip").exit_code == 0
    ((options, *_),) = calls
    assert load_recipe("small-images").flip
    assert options.recipe == load_recipe("small-images").with_changes({"flip": False})


def test_several_processes_run_the_same_command(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]]) -> None:
    started: list[tuple[int, list[str]]] = []
    monkeypatch.setattr("fxhash.training.processes.run_together", lambda *each: started.append(each))
    arguments = ["train", "--model", "resnet8", "--processes", "2"]
    monkeypatch.setattr("sys.argv", ["fxhash", *arguments])
    assert run(*arguments).exit_code == 0
    assert started == [(2, ["-m", "fxhash", *arguments])]
    assert calls == []


def test_a_run_that_goes_on(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert_one_line(
        run("train", "--resume", "--output", str(tmp_path)),
        f"there is no run in {str(tmp_path)!r}: it has no run.json",
        status=1,
    )
    options = RunOptions("resnet8", "digits", Recipe(), device="cpu")
    monkeypatch.setattr("fxhash.training.folder.read_configuration", lambda folder: (options, {}))
    assert run("train", "--resume", "--output", str(tmp_path)).exit_code == 0
    assert calls == [(tmp_path,)]


def test_a_target(calls: list[tuple[Any, ...]]) -> None:
    """A name of the zoo is the same with and without its prefix, so that runs of both go together."""
    assert run("train", "--model", "zoo:resnet8").exit_code == 0
    assert run("train", "--model", "torchvision:resnet18").exit_code == 0
    assert [options.model for options, *_ in calls] == ["resnet8", "torchvision:resnet18"]


def test_without_a_model(calls: list[tuple[Any, ...]]) -> None:
    line = "give --model, such as --model resnet20; `fxhash.zoo.list()` has the names"
    assert_one_line(run("train"), line, status=2)
    assert calls == []


def test_a_folder_that_can_not_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    folder = str(tmp_path / "run")
    line = (
        f"can't write to {folder!r}: no space left; no run was begun: make room or give another --output, then start "
    )
    assert_one_line(run("train", "--model", "resnet8", "--output", folder), f"{line}again", status=2)


@pytest.fixture
def without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("fxhash.training.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)


@pytest.mark.usefixtures("without_lightning")
def test_training_without_lightning() -> None:
    line = 'lightning is not installed; to get it: pip install "fxhash[train]"'
    assert_one_line(run("train", "--model", "resnet8"), line, status=2)


@pytest.mark.usefixtures("without_lightning")
@pytest.mark.parametrize("arguments", [["eval", "."], ["export", ".", "x.onnx"], ["bench", "."], ["report", "."]])
def test_what_is_done_with_runs_needs_no_lightning(arguments: list[str]) -> None:
    assert_one_line(run(*arguments), "there is no run in '.': it has no run.json", status=1)
