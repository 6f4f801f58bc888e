"""The demonstration, run for one epoch: its rows, its files, its figures and what it prints."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fxhash.storage.checkpoint import read_plan
from fxhash.training import demo
from fxhash.training.demo_results import Latency, Result, results_table

# Torch's own, about how Lightning calls it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*"),
]


@pytest.fixture(scope="module")
def printed() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new" / "directory"


@pytest.fixture(scope="module")
def results(output: Path, printed: io.StringIO) -> tuple[Result, ...]:
    return demo.run_demo(output, epochs=1, console=Console(file=printed, width=80))


def test_one_result_a_model(results: tuple[Result, ...]) -> None:
    assert [result.name for result in results] == ["dense", "25 %", "10 %", "5 %"]
    assert all(set(result.latency) == {1, 100} for result in results)


def test_trainable_parameters_keep_to_the_budget(results: tuple[Result, ...]) -> None:
    dense, *compressed = results
    assert 200_000 < dense.trainable_parameters < 500_000
    for result, compress in zip(compressed, demo.COMPRESSIONS, strict=True):
        share = result.trainable_parameters / dense.trainable_parameters
        assert 0.99 * compress <= share <= compress


def test_deployed_is_trained(results: tuple[Result, ...]) -> None:
    for result in results:
        assert result.deployed_accuracy == result.trained_accuracy
        assert result.largest_logit_difference < 1e-3


def test_one_epoch_learns_something(results: tuple[Result, ...]) -> None:
    # A tenth of the digits are right by chance.
    assert results[0].trained_accuracy > 0.5


def test_files_shrink(results: tuple[Result, ...]) -> None:
    sizes = [result.file_bytes for result in results]
    assert sizes == sorted(sizes, reverse=True)
    assert results[1].file_bytes < 0.5 * results[0].file_bytes


def test_latency_is_given_beside_dense(results: tuple[Result, ...]) -> None:
    dense = results[0]
    for result in results:
        for batch_size, latency in result.latency.items():
            expected = latency.milliseconds / dense.latency[batch_size].milliseconds
            assert latency.ratio_to_dense == pytest.approx(expected)
            assert latency.milliseconds > 0


def test_writes_a_file_a_model_and_the_results(results: tuple[Result, ...], output: Path) -> None:
    assert {path.name for path in output.iterdir()} == {
        "dense.safetensors",
        "25_percent.safetensors",
        "10_percent.safetensors",
        "5_percent.safetensors",
        "results.json",
        "accuracy_over_size.png",
    }
    report = json.loads((output / "results.json").read_text())
    assert report["epochs"] == 1
    assert [row["name"] for row in report["results"]] == [result.name for result in results]
    assert report["results"][2]["file_bytes"] == (output / "10_percent.safetensors").stat().st_size
    assert report["results"][2]["latency"]["1"]["ratio_to_dense"] == results[2].latency[1].ratio_to_dense


@pytest.mark.usefixtures("results")
def test_plot_is_a_png(output: Path) -> None:
    content = (output / "accuracy_over_size.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 10_000


@pytest.mark.usefixtures("results")
def test_log_file_is_plain_and_fits_80_columns(printed: io.StringIO, output: Path) -> None:
    text = printed.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert f"Results: {output / 'results.json'}\n" in text
    assert f"Plot:    {output / 'accuracy_over_size.png'}\n" in text
    assert all(len(line) <= 80 for line in text.splitlines() if str(output) not in line)
    trained = [line.partition(": trained in ")[0].strip() for line in text.splitlines()[2:6]]
    assert trained == ["dense", "25 %", "10 %", "5 %"]


@pytest.mark.usefixtures("results")
def test_table_cuts_nothing_off_at_80_columns(results: tuple[Result, ...]) -> None:
    slow = {1: Latency(12.34, 12.34), 100: Latency(123.45, 12.34)}
    wide = Result("dense", 297_450, 1_201_234, 1.0, 1.0, 1e-16, slow)
    for rows in (results, [wide]):
        file = io.StringIO()
        Console(file=file, width=80).print(results_table(rows))
        text = file.getvalue()
        assert "…" not in text
        assert "297,450" in text
    assert "123.45 (12.34)" in text


def test_second_run_gives_the_same_accuracies(
    results: tuple[Result, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "COMPRESSIONS", (0.10,))
    torch.rand(3)  # Where the global generator stands doesn't matter.
    again = demo.run_demo(tmp_path, epochs=1, console=Console(file=io.StringIO()))
    assert [result.trained_accuracy for result in again] == [results[i].trained_accuracy for i in (0, 2)]
    assert (tmp_path / "10_percent.safetensors").stat().st_size == results[2].file_bytes


def test_a_second_run_overwrites_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "COMPRESSIONS", ())
    for epochs in (1, 2):
        demo.run_demo(tmp_path, epochs, console=Console(file=io.StringIO()))
        assert json.loads((tmp_path / "results.json").read_text())["epochs"] == epochs
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"dense.safetensors", "results.json", "accuracy_over_size.png"}


def test_leaves_generator_and_threads_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        assert torch.get_num_threads() == 1
        raise RuntimeError("the plot failed")

    monkeypatch.setattr(demo, "COMPRESSIONS", ())
    monkeypatch.setattr(demo, "plot_accuracy", fail)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="the plot failed"):
            demo.run_demo(tmp_path, epochs=1, console=Console(file=io.StringIO()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("results")
def test_saved_file_fits_the_model_again(output: Path) -> None:
    plan = read_plan(output / "10_percent.safetensors")
    assert plan.compress == 0.10
