"""The tables and bytes of the front of accuracy: how they are made of `benchmarks/results/front.csv` and runs."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fxhash import zoo
from fxhash.training.recipe import load_recipe

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


pytestmark = pytest.mark.usefixtures("beside_the_scripts")


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def run(network, kind, seed, accuracy, setting="adamw 0.02", epochs=10):
    return {
        "name": f"{'run' if epochs == 10 else 'pilot'}-{network}-{setting}-{seed}",
        "kind": kind,
        "network": network,
        "setting": setting,
        "seed": seed,
        "epochs": epochs,
        "trainable_before": 269_722 if kind.endswith("compressed") else 29_780,
        "trainable_after": 26_972 if kind.endswith("compressed") else 29_780,
        "test_accuracy": accuracy,
    }


DENSE, COMPRESSED = "resnet8-width10", "resnet20-width16-to-26972"


def test_tables_of_the_front(tmp_path):
    """Means over seeds, from the best network to the worst; bytes of those that have some."""
    import front_table

    runs = [run(DENSE, "resnet dense", 0, 0.6)]
    runs += [run(COMPRESSED, "resnet compressed", seed, accuracy) for seed, accuracy in enumerate((0.61, 0.63))]
    write(tmp_path / "front.csv", runs)
    files = [
        {
            "name": f"{runs[seed + 1]['name']}-{bits}",
            "bytes": 3_200 * bits,
            "test_accuracy": 0.6 + seed / 100 + (bits == 8) / 10,
        }
        for seed in (0, 1)
        for bits in (32, 8, 4)
    ]
    write(tmp_path / "front_bytes.csv", files)
    assert list(front_table.of_parameters(tmp_path))[2:] == [
        "| 26,972 | ResNet-20, compressed | **fxhash** | 62.0 ± 1.4 | 2 | AdamW, 0.02 |",
        "| 29,780 | ResNet-8 of width 10 | dense | 60.0 | 1 | AdamW, 0.02 |",
    ]
    assert list(front_table.of_choices(tmp_path))[2:] == [
        "| 26,972 | ResNet-20 | 10% | AdamW, 0.02 | 62.0 ± 1.4 | ResNet-8 of width 10, 29,780 | 60.0 |"
    ]
    cells = ["102.4 | 62.0 ± 1.4", "25.6 | 70.5 ± 0.7", "12.8 | 60.5 ± 0.7"]
    whole = f"| ResNet-20, compressed | **fxhash** | {' | '.join(cells)} |"
    assert list(front_table.of_bytes(tmp_path))[2:] == [whole]
    # One that was trained in 4 bits has its bytes in these alone, and no place among those in floating point.
    in_few = run(f"{COMPRESSED}-4-bits", "resnet compressed", 0, 0.65)
    write(tmp_path / "front.csv", [*runs, in_few])
    file = {"name": f"{in_few['name']}-4", "bytes": 20_000, "test_accuracy": 0.66}
    write(tmp_path / "front_bytes.csv", [*files, file])
    cells = ["ResNet-20, compressed to 26,972 in 4 bits", "**fxhash**", "", "", "", "", "20.0", "65.0"]
    assert list(front_table.of_bytes(tmp_path))[2:] == [f"| {' | '.join(cells)} |", whole]
    assert len(list(front_table.of_parameters(tmp_path))) == 4


def test_the_table_of_pilots(tmp_path):
    """The best is bold; a change is of the kind's own best rate, so that it has one line for all."""
    import front_table

    settings = {"adamw 0.01": 0.5, "adamw 0.02": 0.6, "adamw 0.02 batch-size 64": 0.7}
    others = {"adamw 0.01": 0.5, "adamw 0.02": 0.4, "adamw 0.01 batch-size 64": 0.4}
    rows = []
    for network in front_table.PILOTS:
        accuracies = settings if network.kind == "resnet dense" else others
        rows += [run(network.label, network.kind, 0, accuracy, name, 4) for name, accuracy in accuracies.items()]
    rows[-1]["test_accuracy"] = 0.0
    write(tmp_path / "front.csv", rows)
    lines = list(front_table.of_pilots(tmp_path))[2:]
    assert lines == [
        "| AdamW, 0.01 | 50.0 | **50.0** | **50.0** | **50.0** |",
        "| AdamW, 0.02 | 60.0 | 40.0 | 40.0 | 40.0 |",
        "| AdamW, the best of these, batch size 64 | **70.0** | 40.0 | 40.0 | diverged |",
    ]


def test_the_table_of_peaks(tmp_path):
    """Each network's settings, the best of which is bold."""
    import front_table

    accuracies = {"sgd 1": 0.5, "sgd 0.3": 0.6, "sgd 0.3 batch-size 64": 0.0}
    rows = [
        {**run(front_table.PEAKS[0].label, "resnet dense", 0, accuracy, name), "name": f"peak-{name}"}
        for name, accuracy in accuracies.items()
    ]
    write(tmp_path / "front.csv", [*rows, run(front_table.PEAKS[0].label, "resnet dense", 0, 0.9)])
    assert list(front_table.of_peaks(tmp_path))[2:] == [
        "| ResNet-8 of width 10 | dense | SGD, 1 | 50.0 |",
        "| ResNet-8 of width 10 | dense | SGD, 0.3 | **60.0** |",
        "| ResNet-8 of width 10 | dense | SGD, 0.3, batch size 64 | diverged |",
    ]


def test_a_peak_is_chosen_by_long_runs_below_that_of_the_short_ones():
    """Three fractions of what short pilots chose, then the best of them in batches of another size."""
    import front

    network, short = front.PEAKS[0], front.PILOTS[0]
    best = front.Run(short, front.Setting("sgd", 1.0, {"weight-decay": 5e-4}), front.PILOT_EPOCHS)
    pilots = {best.name: {"test_accuracy": "0.6"}}
    for _ in range(3):
        others = {pilot.name: {"test_accuracy": "0.5"} for pilot in front.pilots_of(short, pilots)}
        pilots = {**others, **pilots}
    runs = front.peaks_of(network, pilots)
    assert [run.setting.rate for run in runs] == [1.0, 0.3, 0.1]
    assert front.chosen_setting(network.kind, pilots) is None
    pilots |= {run.name: {"test_accuracy": str(run.setting.rate)} for run in runs if run.setting.rate < 1}
    pilots[runs[0].name] = {"test_accuracy": "0.2"}
    *_, last = front.peaks_of(network, pilots)
    assert last.setting == front.Setting("sgd", 0.3, {"weight-decay": 5e-4, "batch-size": 64})
    pilots[last.name] = {"test_accuracy": "0.4"}
    assert front.chosen_setting(network.kind, pilots) == last.setting


def test_the_pages_have_the_recorded_tables():
    import front_table
    from page_tables import block

    for page, tables in front_table.TABLES.items():
        for name, lines in tables.items():
            assert block(name, lines()) in page.read_text(), name


def test_the_size_up_to_which_compare_says_that_we_are_ahead_is_a_recorded_one():
    import front_table

    from fxhash.compare.recommendation import _AHEAD_OF_DENSE

    points = [point for point in front_table.read_points() if point.bits == 32 and point.parameters <= _AHEAD_OF_DENSE]
    best = {kind: max(point.mean for point in points if point.is_compressed == kind) for kind in (True, False)}
    assert best[True] > best[False]


def test_what_the_documents_say_of_the_front_is_recorded():
    import front_table

    by_bits = {(point.network, point.bits): point for point in front_table.read_points()}
    ours, theirs, of_the_family, wide, large_dense, large, deep, shallow, wider = (
        by_bits[name, 32]
        for name in (
            "resnet20-width16-to-26972",
            "convnext6-width24-patch2",
            "resnet8-width10",
            "resnet20-width10",
            "convnext6-width48-patch2",
            "resnet14-width32-to-97500",
            "resnet20-width32-to-97500",
            "resnet8-width48-to-97500",
            "resnet14-width48-to-97500",
        )
    )
    pages = ("README.md", "docs/accuracy.md", "docs/limits.md", "docs/guide/choosing.md")
    texts = {page: " ".join((ROOT / page).read_text().split()) for page in pages}
    lead, large_lead, of_large_family = ours.mean - theirs.mean, large.mean - large_dense.mean, large.mean - wide.mean
    seeds = {1: "one seed", 2: "two seeds", 3: "three seeds"}
    runs = [row for row in front_table.rows_of("run").values() if row["network"] == large_dense.network]
    in_bfloat16, in_float32 = (
        [100 * float(row["test_accuracy"]) for row in runs if row["precision"] == precision]
        for precision in ("bf16", "32")
    )
    for stated in (
        f"by {lead:.1f} points before the best dense network of any architecture that we found, and by "
        f"{ours.mean - of_the_family.mean:.1f} before one of its own family",
        f"the best compressed network is {of_large_family:.1f} points before a dense one of its own family, and "
        f"{large_lead:.1f} before a dense ConvNeXt-like one, which is no more than single seeds differ by; in files of "
        "50 kB these two are level.",
        f"the compressed ResNet-20 has {ours.accuracy}, the best dense network, `convnext6` of width 24, "
        f"{theirs.accuracy}: a lead of {lead:.1f} points",
        f"ResNet-8 of width 10, has {of_the_family.accuracy} (one seed), and a dense ResNet-20 of width 10 needs four "
        f"times as many parameters for {wide.accuracy}.",
        f"the compressed ResNet-14 of width 32 has {large.accuracy} ({seeds[len(large.accuracies)]}), the dense "
        f"`convnext6` of width 48 {large_dense.accuracy}: a lead of {large_lead:.1f} points, no more than single seeds "
        f"differ by. The dense ResNet-20 of width 10 has {wide.accuracy}. Ours were trained in bfloat16, of the dense "
        f"one two of three seeds: these have {in_bfloat16[0]:.1f} and {in_bfloat16[1]:.1f}, that in float32 "
        f"{in_float32[0]:.1f}.",
        f"ResNet-20 of width 32, compressed to {100 * deep.fraction:.0f} %, has {deep.accuracy}, and the shallower "
        f"ResNet-8 of width 48, to {100 * shallow.fraction:.0f} %, {shallow.accuracy} (one seed each). The best one, "
        f"ResNet-14, is compressed to {100 * large.fraction:.0f} %, the best at 27,000 to {100 * ours.fraction:.0f} %. "
        f"A wider one, ResNet-14 of width 48, to {100 * wider.fraction:.0f} %, has {wider.accuracy} (one seed)",
    ):
        assert stated in texts["docs/accuracy.md"]
    assert 3.5 < wide.parameters / ours.parameters < 4.5
    assert max(shallow.mean, deep.mean, wider.mean) < large.mean
    assert len(deep.accuracies) == len(shallow.accuracies) == len(wider.accuracies) == 1
    # What is said to be no more than seeds differ by.
    assert large_lead <= max(max(point.accuracies) - min(point.accuracies) for point in (large, large_dense))
    stated = (
        f"a dense ConvNeXt-like network was about as good there ({large_dense.accuracy} %, the best compressed ResNet "
        f"{large.accuracy}, a dense one {wide.accuracy}). At 27,000 the compressed one leads: {ours.accuracy}, the "
        f"ConvNeXt-like one {theirs.accuracy}, a dense ResNet {of_the_family.accuracy} (CIFAR-10 (JPEG), 10 epochs)"
    )
    assert stated in texts["README.md"]
    stated = (
        f"came within {lead:.1f} points of the compressed ResNet-20; at about 100,000 within {large_lead:.1f} points "
        "of the best that we could compress, no more than single seeds differ by"
    )
    assert stated in texts["docs/limits.md"]
    stated = (
        f"a compressed ResNet was {of_large_family:.1f} points better than a dense one, and {large_lead:.1f} better "
        "than a dense ConvNeXt-like network, within the noise"
    )
    assert stated in texts["docs/guide/choosing.md"]
    assert len(ours.accuracies) == len(theirs.accuracies) == 3
    assert by_bits["convnext6-width48-patch2-to-29000", 32].mean < theirs.mean


def test_what_the_documents_say_of_bytes_is_recorded():
    import front_table

    by_bits = {(point.network, point.bits): point for point in front_table.read_points()}
    text = " ".join((ROOT / "docs/accuracy.md").read_text().split())
    ours, theirs = "resnet20-width16-to-26972", "convnext6-width24-patch2"
    leads = [f"{by_bits[ours, bits].mean - by_bits[theirs, bits].mean:.1f}" for bits in (8, 4)]
    few, rival = by_bits["resnet20-width16-to-25800-4-bits", 4], by_bits[theirs, 4]
    large, large_dense = by_bits["resnet14-width32-to-97500", 4], by_bits["convnext6-width48-patch2", 4]
    middle, deeper = by_bits["resnet14-width32-to-75000-4-bits", 4], by_bits["resnet20-width16-to-76000-4-bits", 4]
    seeds, of_middle = (
        {1: "one seed", 2: "two seeds", 3: "three seeds"}[len(point.accuracies)] for point in (few, middle)
    )
    for stated in (
        f"In files of 20 kB the lead is {few.mean - rival.mean:.1f} points.",
        f"keeps its lead of {leads[0]} points",
        f"and {leads[1]} points ahead",
        f"a file of {few.size / 1e3:.1f} kB has {few.accuracy} ({seeds}), the dense `convnext6` in "
        f"{rival.size / 1e3:.1f} kB {rival.accuracy}**, a lead of {few.mean - rival.mean:.1f} points",
        f"ResNet-14 of width 32, rounded after training, has {large.accuracy} in {large.size / 1e3:.1f} kB, the dense "
        f"`convnext6` of width 48 {large_dense.accuracy} in {large_dense.size / 1e3:.1f}: "
        f"{large.mean - large_dense.mean:.1f} points more in {(large.size - large_dense.size) / 1e3:.0f} kB more. In "
        f"{middle.size / 1e3:.1f} kB a compressed ResNet-14, trained in 4 bits, has {middle.accuracy} ({of_middle}): "
        f"no more than that dense one, which is {(large_dense.size - middle.size) / 1e3:.0f} kB larger. A ResNet-20 in "
        f"{deeper.size / 1e3:.1f} kB has {deeper.accuracy} (one seed).",
    ):
        assert stated in text
    assert len(deeper.accuracies) == 1
    assert abs(middle.mean - large_dense.mean) < 0.5, "which is said to be level"


def test_what_the_documents_say_of_weight_decay_and_precision_is_recorded():
    import front
    import front_table

    checks = front.read_rows(BENCHMARKS / "results" / "front_checks.csv")
    accuracies = {name: 100 * float(row["test_accuracy"]) for name, row in checks.items()}
    small = "peak-resnet20-width16-to-26972-sgd-0.3-weight-decay-{}-0"
    dense = "peak-resnet8-width10-sgd-0.3-weight-decay-{}-batch-size-64-0"
    decays = [accuracies[name.format(decay)] for name in (small, dense) for decay in ("0.0001", "0.0005")]
    text = " ".join((ROOT / "docs/accuracy.md").read_text().split())
    assert "{:.1f} and {:.1f} for the compressed ResNet-20, {:.1f} and {:.1f} for the dense".format(*decays) in text
    sines = [accuracies[f"peak-resnet20-width16-to-26972-{name}-0"] for name in ("sine-1.5", "regular-sine-3")]
    assert "lost: {:.1f} for the compressed ResNet-20 with a slope of 1.5 at zero, {:.1f} with".format(*sines) in text
    in_float32 = {name: 100 * float(row["test_accuracy"]) for name, row in front_table.rows_of("peak").items()}
    lost = [in_float32[name] - accuracies[name] for name in (small.format("0.0005"), dense.format("0.0005"))]
    recipes = {
        row["compress"]: 100 * float(row["test_accuracy"])
        for row in front.read_csv(BENCHMARKS / "results" / "recipes.csv")
        if row["recipe"] == "small-images"
    }
    batches, teacher = (accuracies[f"recipe-resnet20-{name}-0"] for name in ("batch-size-64", "to-26972-teacher"))
    assert f"for the dense ResNet-20: {batches:.1f} against {recipes['']:.1f}." in text
    gained = teacher - recipes["0.1"]
    assert f"(`--teacher`) gained {gained:.1f}: {teacher:.1f} against {recipes['0.1']:.1f}." in text
    assert f"bfloat16 lost {lost[0]:.1f} points of the compressed ResNet-20 and {lost[1]:.1f} of the dense" in text


def test_the_sizes_of_files_in_the_rules_of_thumb_are_recorded():
    import front_table

    sizes = {point.bits: point.size for point in front_table.read_points() if point.network == COMPRESSED}
    kilobytes = {bits: f"{size / 1e3:.0f} kB" for bits, size in sizes.items()}
    text = " ".join((ROOT / "docs/guide/choosing.md").read_text().split())
    integers = (
        f"of {kilobytes[8]} with factors in 8 bits and all else in 16, and of {kilobytes[4]} with factors in 4 bits"
    )
    assert f"A ResNet-20 at 10 % is a file of {kilobytes[32]}, {integers}." in text


@pytest.mark.parametrize("kind", ["resnet dense", "resnet compressed"])
def test_the_recipe_has_the_peak_that_was_best_in_long_runs(kind):
    import front

    recipe, rows = load_recipe("small-images"), front.read_rows(BENCHMARKS / "results" / "front.csv")
    chosen = front.chosen_setting(kind, rows)
    assert (chosen.optimizer, chosen.rate) == (recipe.optimizer, recipe.learning_rate)
    assert chosen.changes["weight-decay"] == recipe.weight_decay
    (network,) = (network for network in front.PEAKS if network.kind == kind)
    accuracies = [
        100 * front.accuracy(rows, front.Run(network, setting, image_size=front.SMALL_IMAGE_SIZE))
        for setting in (chosen, replace(chosen, rate=1.0))
    ]
    assert 2.5 < accuracies[0] - accuracies[1] < 3.5, "the documents speak of three points"


def test_the_recipe_states_what_its_runs_reached():
    import front_table

    reached = json.loads((ROOT / "fxhash/training/recipes/small-images.json").read_text())["reached"]
    runs = [row for row in front_table.rows_of("run").values() if row["network"] == COMPRESSED]
    stated = [(each["seed"], each["test_accuracy"]) for each in reached if each["epochs"] == 10]
    assert stated == [(int(row["seed"]), float(row["test_accuracy"])) for row in runs]
    assert {row["epochs"] for row in runs} == {"10"}
    recipe = load_recipe("small-images")
    assert {row["setting"] for row in runs} == {f"sgd {recipe.learning_rate:g} weight-decay {recipe.weight_decay:g}"}
    assert recipe.batch_size == load_recipe("small-images-adamw").batch_size


def test_titles_of_the_front_are_those_of_its_networks():
    import front
    import front_table

    networks = [network for kinds in front.CONTENDERS.values() for networks in kinds for network in networks]
    titles = {front_table.title(network.label) for network in (*networks, *front.RESNETS)}
    assert len(titles) == len({*(network.label for network in networks), "resnet20-width16"})
    assert {"ResNet-8 of width 10", "ResNet-20, compressed", "`convnext6` of width 48"} <= titles


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_bytes_of_a_dense_network(bits):
    """Weights in so many bits; a step for each row, one bias for each batch norm and the rest in 16 bits or 32."""
    import front_bytes

    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5))
    others = 8 + 5 + (8 + 5 if bits < 32 else 0)
    assert front_bytes.dense_bytes(model, bits) == (8 * 27 + 40) * bits // 8 + others * (2 if bits < 32 else 4)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_dense_network_is_rounded_row_by_row(bits):
    import front_bytes

    model = zoo.create("convnext2", width=12).eval()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    front_bytes.round_(model, bits)
    for name, parameter in model.named_parameters():
        if not front_bytes.is_rounded(parameter):
            assert torch.equal(parameter, before[name])
            continue
        for row, old in zip(parameter.detach().flatten(1), before[name].flatten(1), strict=True):
            largest = 2 ** (bits - 1) - 1
            assert len(row.unique()) <= 2 * largest + 1
            # A step is rounded to bfloat16.
            assert (row - old).abs().max() <= old.abs().max() / largest * 0.55
    assert sum(map(front_bytes.is_rounded, model.parameters())) > 10


def test_the_bytes_of_a_finished_run(tmp_path, monkeypatch):
    """Each number of bits once, and no run a second time."""
    import front_bytes

    from fxhash.training import RunOptions, train

    recipe = load_recipe("digits").with_changes({"epochs": 1})
    for compress in (None, 0.1):
        folder = tmp_path / f"run-{compress}"
        train(RunOptions(model="resnet8", data="digits", recipe=recipe, compress=compress), folder)
        assert json.loads((folder / "result.json").read_text())["epochs"] == 1
    output = tmp_path / "bytes.csv"
    arguments = ["front_bytes.py", "--data", "digits", "--runs", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(front_bytes, "commit", lambda: "abc")
    for _ in range(2):
        front_bytes.main()
        rows = list(front_bytes.read_rows(output).values())
        assert [(row["run"], row["bits"]) for row in rows] == [
            (f"run-{compress}", bits) for compress in ("0.1", "None") for bits in ("32", "8", "4")
        ]
    sizes = [int(row["bytes"]) for row in rows]
    assert sizes == sorted(sizes[:3], reverse=True) + sorted(sizes[3:], reverse=True)
    assert sizes[3] < 1.1 * 4 * 75_290
    exact, eight, _ = (float(row["test_accuracy"]) for row in rows[:3])
    assert eight == pytest.approx(exact, abs=0.02)
