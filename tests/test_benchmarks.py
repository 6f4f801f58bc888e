"""The scripts of `benchmarks/` can be started, and build what their records name."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import fxhash
from fxhash import zoo
from tests.helpers import trainable

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    """They import each other by their bare names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_can_be_imported(name):
    script = runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name=name)
    assert script["__doc__"]


def test_the_head_of_a_record(monkeypatch):
    from record import head

    monkeypatch.setattr(sys, "argv", ["/somewhere/deploy.py", "--feathermap", "/my/checkout", "--models", "a b"])
    record = json.loads(json.dumps(head(hidden=Path("/my/checkout"))))
    assert record["command"] == "python benchmarks/deploy.py --feathermap DIR --models 'a b'"
    assert record["threads"] == torch.get_num_threads()
    assert record["device"] == "cpu"
    assert {"commit", "machine", "cpu_capability", "fxhash", "torch", "python"} < record.keys()


def variants():
    """The variants of the accuracy grid that have a recorded row."""
    with (BENCHMARKS / "results" / "accuracy.csv").open(newline="") as file:
        return sorted({row["variant"] for row in csv.DictReader(file)})


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

    assert block(tmp_path / "record.json") == ""
    head = {"machine": "x86_64", "cpu_capability": "AVX2", "threads": 2, "torch": "2.14"}
    (tmp_path / "record.json").write_text(json.dumps({**head, "results": [RESULT]}))
    assert "\n| ResNet-34, CIFAR stem, batch 1 | ms |" in block(tmp_path / "record.json")
    assert "\n| fxhash 2 %, OpenVINO | 1.23 | 0.46 |  | 1.2 |  |\n" in block(tmp_path / "record.json")


def test_forms_in_runtimes(tmp_path, capsys):
    """Each has the outputs of the model that it was made of; what is not installed is left out with a line."""
    pytest.importorskip("onnxruntime")
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
