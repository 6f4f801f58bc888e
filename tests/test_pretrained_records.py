"""What `docs/guide/pretrained.md` says is what `benchmarks/` recorded of pretrained models; how that is measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RESULTS = BENCHMARKS / "results"
PAGE = (BENCHMARKS.parent / "docs" / "guide" / "pretrained.md").read_text()
TEXT = " ".join(PAGE.split())
TABLES = (
    "a sentence encoder by bytes",
    "a sentence encoder by parameters",
    "an image classifier",
    "what the fit takes",
)


pytestmark = pytest.mark.usefixtures("beside_the_scripts")


def record(name):
    return json.loads((RESULTS / name).read_text())


def figure(name, method, fraction, figure):
    return next(row[figure] for row in record(name)["rows"] if (row["method"], row["fraction"]) == (method, fraction))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_page_is_the_recorded_one(name):
    from pretrained_table import TABLES as RENDERED
    from pretrained_table import block

    assert tuple(RENDERED) == TABLES
    assert (RESULTS / RENDERED[name][0]).exists()
    assert block(name) in PAGE


def test_the_page_says_how_the_encoder_was_measured():
    found = record("pretrained.json")
    assert f"{found['weights'] / 1e6:.1f} million weights" in TEXT
    assert f"calibrated on {found['calibration_texts']} short texts" in TEXT
    assert f"learned from {found['recovery_texts']:,}; {found['test_texts']} others" in TEXT
    assert (found["device"], found["threads"]) == ("cpu", 1)


def test_the_page_says_how_the_classifier_was_measured():
    found = record("pretrained_resnet.json")
    assert found["network"] == "resnet20"
    assert f"trained for {found['epochs']} epochs on {found['recovery_images']:,} images" in TEXT
    assert f"on {found['test_images']:,} test images" in TEXT
    assert f"calibrated on {found['calibration_images']:,} of the training images" in TEXT
    assert (found["device"], found["threads"]) == ("cpu", 1)


def test_the_page_says_how_the_fit_was_measured():
    found = record("pretrained_fit.json")
    assert (found["device"], found["threads"]) == ("cpu", 2)
    assert "on two cores" in TEXT


def test_rounding_wins_where_the_page_says_so():
    """At more than 8 % of the bytes; of fewer, factors have some, where rounding has nothing."""
    rows = [row for row in record("pretrained.json")["rows"] if row["fraction"] == 1 or "8 bits" in row["method"]]
    factors = [row for row in rows if row["fraction"] < 1]
    rounded = [row for row in rows if row["method"].startswith("GPTQ")]
    assert {row["method"] for row in rounded} == {f"GPTQ in {bits} bits" for bits in (4, 3, 2)}
    for row in factors:
        nearest = [each["cosine"] for each in rounded if each["bytes"] <= row["bytes"]]
        assert row["cosine"] < max(nearest) if row["bytes"] > 0.08 else not nearest, row
    least = min(rounded, key=lambda row: row["bytes"])
    assert f"at 2 bits, {100 * least['bytes']:.1f} % of the bytes, it keeps {least['cosine']:.2f}" in TEXT
    assert figure("pretrained.json", "rounded to 2 bits", 1.0, "cosine") < 0.2


def test_what_the_readme_says_of_the_encoder():
    cosine = figure("pretrained.json", "fxhash, 20 CPU minutes of recovery, 8 bits", 0.25, "cosine")
    size = figure("pretrained.json", "fxhash, 20 CPU minutes of recovery, 8 bits", 0.25, "bytes")
    readme = " ".join((BENCHMARKS.parent / "README.md").read_text().split())
    assert f"came to {100 * size:.0f} % of their bytes with a cosine of {cosine:.2f} to the old embeddings" in readme


def test_what_the_page_says_of_the_classifier():
    dense = figure("pretrained_resnet.json", "dense", 1.0, "accuracy")
    calibrated, recovered = (
        {
            fraction: 100 * (dense - figure("pretrained_resnet.json", method, fraction, "accuracy"))
            for fraction in (0.5, 0.25, 0.1, 0.05)
        }
        for method in ("fxhash, calibrated", "fxhash, 5 CPU minutes of recovery")
    )
    assert f"{calibrated[0.5]:.1f} points less without training, and {calibrated[0.25]:.1f}" in TEXT
    assert f"after 5 minutes {recovered[0.25]:.1f} less at a quarter" in TEXT
    gains = [calibrated[fraction] - recovered[fraction] for fraction in (0.1, 0.05)]
    assert "brings back {:.0f} points at 10 %, and {:.0f} at 5 %".format(*gains) in TEXT


def test_what_the_page_says_of_a_quarter_of_the_encoder():
    calibrated, recovered = (
        figure("pretrained.json", f"fxhash, {way}, 8 bits", 0.25, "cosine")
        for way in ("calibrated", "5 CPU minutes of recovery")
    )
    size = 100 * figure("pretrained.json", "fxhash, calibrated, 8 bits", 0.25, "bytes")
    assert f"{size:.1f} % of the bytes, keeps {calibrated:.2f}, and after 5 minutes of recovery {recovered:.2f}" in TEXT
    assert recovered > figure("pretrained.json", "GPTQ in 2 bits", 1.0, "cosine")


def row(method, fraction, cpu_seconds, **figures):
    return {"method": method, "fraction": fraction, "bytes": fraction, "cpu_seconds": cpu_seconds, **figures}


def test_tables_of_a_small_record(tmp_path):
    """Time is that from the beginning; a cell without a row is empty, a column without any is left out."""
    from pretrained_table import block

    assert block("an image classifier", tmp_path).count("\n") == 2
    near = {"cosine": 0.5, "rank_correlation": 0.4}
    recovered = "fxhash, {} CPU minutes of recovery"
    rows = [
        row("GPTQ in 2 bits", 1.0, 20.4, **near),
        row("fxhash, calibrated", 0.1, 100, **near),
        row(recovered.format(5), 0.1, 301, **near),
        row(recovered.format(20), 0.1, 902, **near),
        row(recovered.format(20) + ", 8 bits", 0.1, 3, **near),
        row("fxhash, calibrated", 0.25, 120, **near),
    ]
    (tmp_path / "pretrained.json").write_text(json.dumps({"rows": rows}))
    by_bytes = block("a sentence encoder by bytes", tmp_path)
    assert "| GPTQ in 2 bits | 100% | 100.0% | 0.50 | 0.40 | 20 |\n" in by_bytes
    assert "| fxhash, 20 CPU minutes of recovery, 8 bits | 10% | 10.0% | 0.50 | 0.40 | 1303 |\n" in by_bytes
    by_parameters = block("a sentence encoder by parameters", tmp_path)
    assert "| of the parameters | fxhash, calibrated | after 5 CPU minutes | after 20 CPU minutes |\n" in by_parameters
    assert "| 25% | 0.50 |  |  |\n| 10% | 0.50 | 0.50 | 0.50 |\n" in by_parameters
    rows = [row("dense", 1.0, 0, accuracy=0.7464), row("SVD of each layer", 0.5, 1, accuracy=0.25)]
    (tmp_path / "pretrained_resnet.json").write_text(json.dumps({"rows": rows}))
    classifier = block("an image classifier", tmp_path)
    assert "\nThe dense model has 74.6 %.\n\n| of the parameters | SVD |\n|--:|--:|\n| 50% | 25.0 |\n" in classifier


def test_rows_of_a_record_are_replaced(tmp_path, monkeypatch):
    from pretrained_methods import Record

    path = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["x/pretrained.py", "/my/run"])
    for value in (1.0, 2.0):
        to = Record(path, {"images": 3}, lambda made: {"accuracy": made}, [Path("/my/run")])
        for fraction in (0.1, value):
            assert to.measure("way", fraction, 0.5, lambda value=value: value) == value
    found = json.loads(path.read_text())
    assert (found["command"], found["images"]) == ("python benchmarks/pretrained.py DIR", 3)
    assert {row["fraction"]: row["accuracy"] for row in found["rows"]} == {1.0: 1.0, 0.1: 2.0, 2.0: 2.0}


def test_layers_factorized_alone_keep_to_the_budget_and_to_their_inputs():
    """Nearly as many parameters as asked for; whitened, the outputs on the calibration are nearer."""
    from pretrained_methods import collect_moments, own_factors, replaced_weights, with_weights

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.Flatten(), nn.Linear(48, 1)).eval()
    model.register_parameter("kept", nn.Parameter(torch.zeros(900)))
    x = torch.randn(256, 3, 5, 5) * torch.tensor([1.0, 5.0, 0.1]).view(-1, 1, 1)
    weights = replaced_weights(model)
    seen = collect_moments(model, weights, weights, [x])
    with torch.no_grad():
        expected = model(x)
    errors = []
    for moments in (None, seen):
        made = own_factors(model, moments, 0.3)
        assert set(made) == {"0.weight", "2.weight"}, "the last is tiny"
        total = sum(each.numel() for each in model.parameters())
        left = total - sum(weights[name].numel() for name in made)
        for each in (value.flatten(1) for value in made.values()):
            left += int(torch.linalg.matrix_rank(each, rtol=1e-4)) * sum(each.shape)
        assert 0.27 * total < left <= 0.3 * total
        errors.append((with_weights(model, made)(x) - expected).square().mean().item())
    assert 0 < errors[1] < errors[0]
    everything = with_weights(model, own_factors(model, seen, 1e9))
    torch.testing.assert_close(everything(x), expected, rtol=1e-3, atol=1e-3)


def test_the_rank_of_a_layer_factorized_alone():
    from pretrained_methods import factorized

    torch.manual_seed(0)
    weight, inputs = torch.randn(20, 30), torch.randn(200, 30)
    gram = inputs.T @ inputs
    for given in (None, gram):
        assert torch.linalg.matrix_rank(factorized(weight, given, 0.5), rtol=1e-4) == 20 * 30 * 0.5 // 50
    best, whitened = (factorized(weight, given, 0.5) - weight for given in (None, gram))
    assert best.square().sum() < whitened.square().sum()
    assert torch.trace(whitened @ gram @ whitened.T) < torch.trace(best @ gram @ best.T)
