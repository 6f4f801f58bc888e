"""The demonstration, on fewer and smaller images, for one epoch: its forms, its files and what it prints."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fxhash.demo import demonstration, forms
from fxhash.demo.demonstration import run_demo
from fxhash.demo.results import Result
from fxhash.demo.work import Work
from fxhash.storage.reading import read_plan
from tests.demo.helpers import WORK

# Torch's own, about how Lightning calls it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*"),
]

ALL = ["dense", "dense, folded", "dense, width 4", "int8", "fxhash 30 %", "fxhash 30 %, 8 bits", "fxhash 20 %"]


@pytest.fixture(scope="module")
def printed() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new" / "directory"


@pytest.fixture(scope="module")
def results(output: Path, printed: io.StringIO) -> dict[str, Result]:
    found = run_demo(output, epochs=1, console=Console(file=printed, width=80), work=WORK, seconds=0)
    return {result.name: result for result in found}


def test_one_result_a_form(results: dict[str, Result]) -> None:
    assert list(results) == ALL
    assert results["dense"].ratio == 1
    assert all(result.milliseconds > 0 and result.ratio > 0 for result in results.values())


def test_parameters_keep_to_the_budget_and_the_narrower_network_has_no_more(results: dict[str, Result]) -> None:
    dense = results["dense"].parameters
    assert dense == WORK.parameters(WORK.width, channels=1, classes=10)
    for name, share in (("fxhash 30 %", 0.3), ("fxhash 20 %", 0.2)):
        assert 0.97 * share * dense <= results[name].parameters <= share * dense
    assert 0.5 * 0.3 * dense < results["dense, width 4"].parameters <= 0.3 * dense
    assert WORK.parameters(5, channels=1, classes=10) > 0.3 * dense


def test_one_epoch_learns_something(results: dict[str, Result]) -> None:
    # A tenth of the digits are right by chance.
    assert results["dense"].trained_accuracy > 0.3


def test_deployed_is_trained(results: dict[str, Result]) -> None:
    for name in ALL:
        # Of 540 images: what rounding changes may tip one over where two classes are as likely.
        off = 0.1 if "8 bits" in name or name == "int8" else 0.004
        assert results[name].accuracy == pytest.approx(results[name].trained_accuracy, abs=off), name
    assert results["fxhash 30 %, 8 bits"].trained_accuracy == results["fxhash 30 %"].trained_accuracy


def test_every_form_has_a_file(results: dict[str, Result], output: Path) -> None:
    names = {result.file for result in results.values()}
    assert len(names) == len(ALL)
    assert {path.name for path in output.iterdir()} == names | {"results.json", "demo.png"}
    for result in results.values():
        assert result.file_bytes == (output / result.file).stat().st_size
    assert results["fxhash 30 %, 8 bits"].file_bytes < results["fxhash 30 %"].file_bytes
    assert read_plan(output / "fxhash_20_percent.safetensors").compress == 0.20


def test_resident_bytes(results: dict[str, Result]) -> None:
    dense = results["dense"]
    assert 4 * dense.parameters < dense.resident_bytes < 4.4 * dense.parameters
    assert dense.parameters < results["int8"].resident_bytes < 1.5 * dense.parameters
    factors = 4 * results["fxhash 20 %"].parameters
    assert factors < results["fxhash 20 %"].resident_bytes <= factors + 4.4 * WORK.cached * dense.parameters


def test_the_results_are_written(results: dict[str, Result], output: Path) -> None:
    report = json.loads((output / "results.json").read_text())
    assert report["command"] == "fxhash demo --epochs 1"
    assert report["images"] == {"train": 1257, "test": 540}
    assert report["work"]["model"] == "resnet8"
    assert report["title"] == "ResNet-8 on digits of scikit-learn, 8 x 8 pixels"
    assert [Result(**row) for row in report["results"]] == list(results.values())


@pytest.mark.usefixtures("results")
def test_the_chart_is_a_png(output: Path) -> None:
    content = (output / "demo.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 10_000


@pytest.mark.usefixtures("results")
def test_what_is_printed_is_plain_and_fits_80_columns(printed: io.StringIO, output: Path) -> None:
    text = printed.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert f"Results: {output / 'results.json'}\n" in text
    assert f"Chart:   {output / 'demo.png'}\n" in text
    assert all(len(line) <= 80 for line in text.splitlines() if str(output) not in line)
    trained = [line.partition(": trained in ")[0].strip() for line in text.splitlines()[2:6]]
    assert trained == ["dense", "dense, width 4", "fxhash 30 %", "fxhash 20 %"]
    conclusion = json.loads((output / "results.json").read_text())["conclusion"]
    assert conclusion in " ".join(text.split())


def test_a_second_run_gives_the_same_models_and_overwrites_the_first(
    results: dict[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.rand(3)  # Where the global generator stands doesn't matter.
    monkeypatch.setattr(forms, "quantize", lambda *_: None)
    printed = io.StringIO()
    for compressions in ((0.3,), (0.3, 0.2)):
        work = replace(WORK, compressions=compressions)
        again = run_demo(tmp_path, epochs=1, console=Console(file=printed), work=work, seconds=0)
        for result in again:
            assert result.accuracy == results[result.name].accuracy
            assert result.file_bytes == results[result.name].file_bytes
    assert [result.name for result in again] == [name for name in ALL if name != "int8"]
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == len(ALL) - 1
    assert "int8 is left out" in printed.getvalue()


def test_leaves_generator_and_threads_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        assert torch.get_num_threads() == 1
        torch.rand(1)
        raise RuntimeError("training failed")

    monkeypatch.setattr(demonstration, "train", fail)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="training failed"):
            run_demo(tmp_path, epochs=1, console=Console(file=io.StringIO()), work=WORK)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_work_of_the_command_has_a_rivalled_size_and_a_network_that_is_narrower() -> None:
    work = Work()
    assert work.rivalled in work.compressions
    assert list(work.compressions) == sorted(work.compressions, reverse=True)
    assert work.parameters(work.narrower(1, 10), 1, 10) <= work.rivalled * work.parameters(work.width, 1, 10)
