"""`fxhash train`: what its options become."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from fxhash.errors import TrainingError
from fxhash.training import Recipe, RunOptions, RunResult, load_recipe
from fxhash.training.processes import StoppedError, check_process_count
from tests.cli.helpers import assert_one_line, run

RESULT = RunResult(2000, 1000, 0.5, 1.0, epochs=1, seconds=1.0, gradient_bytes=0, dense_gradient_bytes=0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command calls the training with, which trains nothing here."""
    made: list[tuple[Any, ...]] = []

    def record(*arguments: Any, **options: Any) -> RunResult:
        made.append((*arguments, options) if options else arguments)
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
        *("--model-option", "patch_size=8", "--model-option", "share=0.5"),
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
        model_options={"patch_size": 8, "share": 0.5},
    )
    assert calls == [(options, Path("there"), True)]


@pytest.mark.parametrize("text", ["width", "width=", "width=.", "width=-1", "width=nan", "=8", "a b=8"])
def test_an_option_of_a_model_that_is_none(text: str, calls: list[tuple[Any, ...]]) -> None:
    result = run("train", "--model", "resnet8", "--model-option", text)
    assert_one_line(result, f"--model-option {text!r} is no NAME=NUMBER, such as width=8", status=2)
    assert calls == []


@pytest.mark.parametrize(
    ("data", "recipe"), [("digits", "digits"), ("mnist5k", "mnist5k"), ("cifar10", "small-images")]
)
def test_the_recipe_follows_the_data(data: str, recipe: str, calls: list[tuple[Any, ...]]) -> None:
    assert run("train", "--model", "resnet8", "--data", data).exit_code == 0
    assert calls[0][0].recipe == load_recipe(recipe)


def test_a_recipe_by_name_with_a_change(calls: list[tuple[Any, ...]]) -> None:
    assert run("train", "--model", "resnet8", "--recipe", "small-images", "--no-flip").exit_code == 0
    ((options, *_),) = calls
    assert load_recipe("small-images").flip
    assert options.recipe == load_recipe("small-images").with_changes({"flip": False})


def test_a_learning_rate_is_of_its_optimizer(calls: list[tuple[Any, ...]]) -> None:
    command = ("train", "--model", "resnet8", "--data", "cifar10", "--optimizer", "adamw")
    line = (
        "the learning rate of recipe 'small-images', 0.3, is one for sgd: with --optimizer 'adamw' give --learning-rate"
    )
    assert_one_line(run(*command), f"{line} too", status=1)
    assert calls == []
    assert run(*command, "--learning-rate", "0.01").exit_code == 0


def test_several_processes_run_the_same_command(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]]) -> None:
    monkeypatch.setattr("fxhash.training.processes._core_count", lambda: 2)
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
    assert calls == [(tmp_path, {"changes": {}, "download": False})]
    # The same command again, or with what may change.
    wide = replace(options, model_options={"width": 8})
    monkeypatch.setattr("fxhash.training.folder.read_configuration", lambda folder: (wide, {}))
    again = ("train", "--resume", "--output", str(tmp_path), "--model-option")
    assert run(*again, "width=8").exit_code == 0
    assert calls.pop() == calls[0]
    assert run(*again, "width=9").exit_code == 2
    monkeypatch.setattr("fxhash.training.folder.read_configuration", lambda folder: (options, {}))
    same = ("--resume", "--output", str(tmp_path), "--model", "resnet8", "--data", "digits", "--seed", "0")
    assert run("train", *same, "--learning-rate", "0.01", "--epochs", "30").exit_code == 0
    assert calls[1] == calls[0]
    assert run("train", *same, "--epochs", "60", "--device", "auto", "--data-folder", "x", "--download").exit_code == 0
    assert calls[2][1] == {"changes": {"epochs": 60, "device": "auto", "data_folder": "x"}, "download": True}


def test_a_run_that_goes_on_on_another_device(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    """Of a run on a GPU, on a machine that has none."""
    options = RunOptions("resnet8", "digits", Recipe(), device="cuda")
    monkeypatch.setattr("fxhash.training.folder.read_configuration", lambda folder: (options, {}))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    resume = ("train", "--resume", "--output", str(tmp_path))
    assert_one_line(run(*resume), "this machine has no CUDA device that PyTorch can use: give auto or cpu", status=1)
    assert calls == []
    assert run(*resume, "--device", "cpu").exit_code == 0
    assert calls == [(tmp_path, {"changes": {"device": "cpu"}, "download": False})]


def test_a_run_does_not_go_on_as_another(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    options = RunOptions("resnet8", "digits", Recipe(), device="cpu")
    monkeypatch.setattr("fxhash.training.folder.read_configuration", lambda folder: (options, {}))
    line = (
        f"the run in {str(tmp_path)!r} goes on as it was begun, with another --compress, --learning-rate: omit this, "
        "or start a new run in another --output"
    )
    given = ("--compress", "0.1", "--learning-rate", "4", "--epochs", "60")
    assert_one_line(run("train", "--resume", "--output", str(tmp_path), *given), line, status=2)
    assert calls == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (("--device", "gpu"), "the device 'gpu' is unknown: give cuda"),
        (("--device", "tpu"), "the device 'tpu' is unknown: give auto, cpu or cuda"),
        (("--device", "cuda"), "this machine has no CUDA device that PyTorch can use: give auto or cpu"),
        (("--device", "mps"), "this machine has no MPS device that PyTorch can use: give auto or cpu"),
        (
            ("--device", "cuda:1"),
            "the device 'cuda:1' is one of several: give cuda, and choose with the environment variable "
            "CUDA_VISIBLE_DEVICES=1",
        ),
        (("--processes", "64"), "64 processes can't train on 2 cores: give --processes 2 or fewer"),
    ],
)
def test_what_the_machine_has_not(
    given: tuple[str, ...],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    calls: list[tuple[Any, ...]],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("fxhash.training.processes._core_count", lambda: 2)
    assert_one_line(run("train", "--model", "resnet8", "--output", str(tmp_path / "run"), *given), line, status=1)
    assert calls == []
    assert not (tmp_path / "run").exists()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(TrainingError, match=r"2 processes can't train on 1 GPU: give --processes 1$"):
        check_process_count(2, "auto")
    monkeypatch.setattr("fxhash.training.processes._core_count", lambda: 2)
    check_process_count(2, "cpu")


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), StoppedError("stopped by signal 15")])
@pytest.mark.parametrize("begun", [True, False])
def test_a_run_that_is_stopped(
    stopped: BaseException, begun: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "my run"

    def stop(*_: Any) -> None:
        if begun:
            folder.mkdir()
            (folder / "run.json").write_text("{}")
        raise stopped

    monkeypatch.setattr("fxhash.training.train", stop)
    how = f"to go on, fxhash train --resume --output '{folder}'" if begun else "start it again"
    line = f"the run in {str(folder)!r} was stopped{': ' if begun else ' before it began: '}{how}"
    arguments = ("train", "--model", "resnet8", "--device", "cpu", "--output", str(folder))
    assert_one_line(run(*arguments), line, status=1)
    # Of several processes, the one that started them says it.
    monkeypatch.setenv("FXHASH_STARTER", "1")
    if not begun:
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (1, "")


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


def test_messages_speak_of_options(tmp_path: Path) -> None:
    """Of those that the command has: `train` chooses no parameters."""
    folder = tmp_path / "run"
    new = ("train", "--model", "resnet8", "--output", str(folder))
    result = run(*new, "--compress", "0.00001")
    assert re.fullmatch(
        r"fxhash: error: --compress 1e-05 of 75,002 .* rank 1\. Use --compress 0\.\d+ or more\n", result.stderr
    )
    assert_one_line(run(*new, "--batch-size", "0"), "--batch-size 0 must be at least 1", status=1)
    line = "--compress 3.0 is not a fraction: give trainable parameters after over before, more than 0 and at most 1, "
    assert_one_line(run(*new, "--compress", "3"), f"{line}such as --compress 0.1", status=1)
    assert not folder.exists()


def test_messages_of_a_command_that_chooses_parameters() -> None:
    result = run("inspect", "zoo:resnet8", "--compress", "0.00001")
    assert "Use --compress 0." in result.stderr
    assert result.stderr.endswith("or more, or hash more of it with --include\n")
    result = run("inspect", "zoo:resnet8", "--exclude", "wieght")
    assert result.stderr.startswith("fxhash: error: --exclude 'wieght' is found in no parameter's name (did you mean")
    result = run("inspect", "zoo:resnet8", "--exclude", ".")
    assert "no parameter is left to hash: all" in result.stderr
    assert result.stderr.endswith("Choose some with --include, or exclude fewer\n")
