"""The scripts of `benchmarks/` can be started, and build what their records name."""

from __future__ import annotations

import argparse
import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fxhash
from fxhash import zoo
from tests.helpers import skip_unless_onnx_has_batch_norms, trainable

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


pytestmark = pytest.mark.usefixtures("beside_the_scripts")


@pytest.mark.parametrize("name", SCRIPTS)
def test_can_be_imported(name):
    script = runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name=name)
    assert script["__doc__"]


def test_the_head_of_a_record(monkeypatch):
    from record import head

    monkeypatch.setattr(sys, "argv", ["/somewhere/deploy.py", "--feathermap", "/my/checkout", "--models", "a b"])
    record = json.loads(json.dumps(head(hidden=[Path("/my/checkout")])))
    assert record["command"] == "python benchmarks/deploy.py --feathermap DIR --models 'a b'"
    assert record["threads"] == torch.get_num_threads()
    assert record["device"] == "cpu"
    assert {"commit", "machine", "cpu_capability", "fxhash", "torch", "python"} < record.keys()


def variants():
    """The variants of the accuracy grid that have a recorded row."""
    found = set()
    for name in ("accuracy.csv", "factor_bits.csv"):
        with (BENCHMARKS / "results" / name).open(newline="") as file:
            found |= {row["variant"] for row in csv.DictReader(file)}
    return sorted(found)


def test_every_variant_has_a_recorded_row():
    from accuracy import VARIANTS

    assert sorted(VARIANTS) == variants()


@pytest.mark.parametrize("name", variants())
def test_a_variant_can_be_built_within_its_budget(name):
    from accuracy import VARIANTS, as_it_is

    dense = zoo.create("resnet20")
    before = trainable(dense)
    model = VARIANTS[name](dense, 0.1, 0)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    counted = sum(parameter.numel() for parameter in model.parameters() if "frozen" in name or parameter.requires_grad)
    # A rank of the tall matrix takes a twentieth of the budget or more, and all get the same number of ranks.
    assert counted == before if VARIANTS[name] is as_it_is else 0.09 * before < counted <= 0.1 * before


def test_a_modulation_by_ones_is_the_product():
    from generators import modulate_

    gm = fxhash.transform(zoo.create("resnet20"), 0.1, seed=0)
    plan = gm.smh_generator.plan
    assert {bool(parameter.kernels) for parameter in plan.hashed} == {True, False}
    x = torch.randn(2, 3, 16, 16)
    expected = gm.eval()(x)
    torch.testing.assert_close(modulate_(gm, [torch.ones(plan.layout.cols)] * len(plan.hashed))(x), expected)
    twice = modulate_(gm, [2 * torch.ones(plan.layout.cols)] * len(plan.hashed)).smh_generator
    for parameter in plan.hashed:
        torch.testing.assert_close(twice(parameter.fqn), 2 * fxhash.SMHGenerator.forward(twice, parameter.fqn))


RESULT = {
    "model": "resnet34",
    "batch": 1,
    "candidate": "fxhash 2%, OpenVINO",
    "milliseconds": 1.234,
    "ratio_to_dense": 0.456,
    "ratio_to_onnx": None,
    "calls": 3,
    "disk_bytes": 1_250_000,
    "resident_bytes": None,
}


def test_the_table_of_runtimes(tmp_path):
    from runtimes_table import block

    assert block(tmp_path / "record.json").count("\n") == 2
    head = {"machine": "x86_64", "cpu_capability": "AVX2", "threads": 2, "torch": "2.14"}
    (tmp_path / "record.json").write_text(json.dumps({**head, "results": [RESULT]}))
    assert "\n| ResNet-34, CIFAR stem, batch 1 | ms |" in block(tmp_path / "record.json")
    assert "\n| fxhash 2 %, OpenVINO | 1.23 | 0.46 |  | 1.2 |  |\n" in block(tmp_path / "record.json")


@pytest.mark.slow
def test_forms_in_runtimes(tmp_path, capsys):
    """Each has the outputs of the model that it was made of; what is not installed is left out with a line."""
    pytest.importorskip("onnxruntime")
    skip_unless_onnx_has_batch_norms()
    from runtimes import Forms

    dense, x = zoo.create("resnet20").eval(), torch.randn(1, 3, 16, 16)
    gm = fxhash.transform(dense, 0.1, seed=0).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        forms = Forms("resnet20", (x,), 1, tmp_path, ("onnxruntime", "openvino"))
    assert "OpenVINO is not installed" in capsys.readouterr().err
    forms.add_dense(dense)
    forms.add_compressed("fxhash 10%", gm)
    onnx = ["dense, ONNX Runtime", "dense, ONNX Runtime, int8", "fxhash 10%, ONNX Runtime"]
    assert list(forms.forms) == ["dense", *onnx[:2], "fxhash 10%", onnx[2], f"{onnx[2]}, small"]
    for label, form in forms.forms.items():
        if "int8" not in label:
            result = form.call()
            actual = torch.as_tensor(result[0] if isinstance(result, list) else result)
            torch.testing.assert_close(actual, (dense if "dense" in label else gm)(x), rtol=1e-3, atol=1e-4)
    assert forms.forms["fxhash 10%"].disk_bytes < forms.forms["dense"].disk_bytes / 5
    small, usual = (forms.forms[label] for label in (f"{onnx[2]}, small", onnx[2]))
    assert small.resident_bytes < usual.resident_bytes


def finished(rows, runs, accuracy_of):
    """Rows of what is finished, and of some runs."""
    return rows | {run.name: {"test_accuracy": str(accuracy_of(run))} for run in runs}


def all_finished(accuracy_of):
    """Rows of all runs of the front, made as the plan asks for them; and the runs, in order."""
    import front

    rows, runs = {}, []
    while missing := {run.name: run for run in front.plan(rows) if run.name not in rows}:
        runs += missing.values()
        rows = finished(rows, missing.values(), accuracy_of)
    return rows, runs


def test_the_plan_of_the_front():
    """Equal pilots for each kind of network, long ones too, one run of each network, and more seeds of the best."""
    import front

    first = list(front.plan({}))
    assert [run.setting for run in first] == [*front.RATES] * len(front.PILOTS)
    assert {run.epochs for run in first} == {front.PILOT_EPOCHS}
    rows, runs = all_finished(lambda run: 0.5 + 0.1 * (run.network.model == "convnext6"))
    assert len({run.name for run in runs}) == len(runs) == len(rows)
    pilots, peaks = ([run for run in runs if run.stage == stage] for stage in ("pilot", "peak"))
    assert runs[: len(pilots)] == pilots
    for network in front.PEAKS:
        assert len([run for run in peaks if run.network == network]) == 3 + 1
    for network in front.PILOTS:
        assert len([run for run in pilots if run.network == network]) == len(front.RATES) + 8
    assert len(runs) == len(pilots + peaks) + 13 + 6 * 2 + 1 + 2 * 2
    for networks in (each for kinds in front.CONTENDERS.values() for each in kinds):
        best = max(networks, key=lambda network: network.model == "convnext6")
        assert [run.seed for run in runs if run.network == best and run.stage == "run"] == [0, 1, 2]


def test_a_recipe_of_the_front_follows_its_own_pilots():
    """Which try other changes with the best rate."""
    import front

    def accuracy_of(run):
        of_dense = run.network.kind.endswith("dense")
        rate = 0.5 - abs(run.setting.rate - (0.01 if of_dense else 0.04))
        return rate + ("batch-size" in run.setting.changes) * (1e-3 if of_dense else -1e-3)

    rows, runs = all_finished(accuracy_of)
    dense, compressed = front.Setting("adamw", 0.01, {"batch-size": 64}), front.Setting("adamw", 0.04)
    assert front.chosen_setting("resnet dense", rows) == dense
    assert front.chosen_setting("convnext compressed", rows).label == "adamw 0.04"
    assert front.chosen_setting("convnext compressed", {}) is None
    for run in runs:
        if run.stage == "run":
            expected = dense if run.network.kind.endswith("dense") else compressed
            assert run.setting.label == expected.label
    (run, *_) = (run for run in runs if run.setting == dense and run.stage == "run")
    options = front.options_of(run, argparse.Namespace(data="all", pilots="third", precision="bf16"))
    assert options[options.index("--batch-size") + 1] == "64"


def test_the_networks_of_the_front_have_the_sizes_that_are_compared():
    import front

    of_sizes = [network for kinds in front.CONTENDERS.values() for networks in kinds for network in networks]
    for network in (*of_sizes, *front.RESNETS):
        with torch.device("meta"):
            parameters = trainable(zoo.create(network.model, **network.options))
        if network.parameters:
            trained = front.compress_of(network) * parameters
            assert trained == pytest.approx(network.parameters, rel=1e-3)
        else:
            trained = parameters
        sizes = (27_500, 76_000, front.LARGE, 269_722)
        assert any(trained == pytest.approx(size, rel=0.1) for size in sizes), network


def test_rows_of_the_front_are_written_once(tmp_path):
    import front

    rows = [{"name": "first", "test_accuracy": 0.5}, {"name": "second", "test_accuracy": 0.6}]
    for row in (*rows, {**rows[0], "test_accuracy": 0.7}):
        front.write_row(tmp_path / "front.csv", row)
    read = front.read_rows(tmp_path / "front.csv")
    assert {name: float(row["test_accuracy"]) for name, row in read.items()} == {"first": 0.5, "second": 0.6}


DIVERGED = "fxhash: error: the loss is nan in epoch 1"


@pytest.mark.parametrize(
    ("ends", "error", "count"), [(0, "", 11), (1, "fxhash: error: another process", 1), (1, DIVERGED, 11)]
)
def test_the_front_begins_runs_and_goes_on_with_them(ends, error, count, tmp_path, monkeypatch):
    """Each run once a call, whether it ends well or not; a finished folder is only read, an infinite loss counts."""
    import front

    commands = []

    def run(command, **_):
        commands.append(command)
        folder = Path(command[-1])
        if ends == 0 or error == DIVERGED:
            write_run(folder)
        if ends:
            (folder / "result.json").unlink(missing_ok=True)
        return subprocess.CompletedProcess(command, ends, stderr=error)

    def write_run(folder):
        folder.mkdir(parents=True)
        recipe = {"precision": "bf16"}
        begun = {"options": {"compress": None, "recipe": recipe}, "images": {"train": 6}, "versions": VERSIONS}
        (folder / "run.json").write_text(json.dumps(begun))
        (folder / "result.json").write_text(json.dumps(dict.fromkeys(RESULTS, 0.5)))
        (folder / "metrics.csv").write_text("epoch,seconds\n1,60\n")

    monkeypatch.setattr(front, "PILOTS", front.PILOTS[:1])
    monkeypatch.setattr(front, "PEAKS", ())
    monkeypatch.setattr(front, "CONTENDERS", {})
    monkeypatch.setattr(front, "RESNETS", ())
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(front, "commit", lambda: "abc")
    monkeypatch.setattr(front, "machine", lambda: "none")
    first, *_ = front.plan({})
    write_run(tmp_path / "runs" / first.name)
    options = ["--data", "all", "--pilots", "third", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["front.py", *options, "--output", str(tmp_path / "front.csv")])
    front.main()
    rows = front.read_rows(tmp_path / "front.csv")
    assert (len(rows), len(commands)) == (count, 2 if count == 1 else 10)
    assert rows[first.name]["minutes"] == "1.0"
    assert [float(row["test_accuracy"]) for row in rows.values()] == [0.5] + [0.5 - 0.5 * ends] * (count - 1)
    begun = commands[0][4:-2]
    assert begun[begun.index("--data") + 1] == "third"
    assert begun[-2:] == ["--model-option", "width=16"]


VERSIONS = {"torch": "2.14", "python": "3.11"}
RESULTS = ("epochs", "trainable_before", "trainable_after", "test_accuracy", "test_loss")
