"""What the documents say: figures are the recorded ones, links lead somewhere, examples run.

Their commands and Python blocks are run by `test_documented_commands.py`; the site is built by `test_site.py`.
"""

from __future__ import annotations

import csv
import json
import re
import runpy
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

import fxhash
from tests.helpers import skip_unless_onnx_has_open_sizes

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
ACCURACY = (DOCS / "accuracy.md").read_text()
BENCHMARKS = (DOCS / "benchmarks.md").read_text()
LOWERING = (DOCS / "how-it-works.md").read_text()
CHOOSING = (DOCS / "guide" / "choosing.md").read_text()
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def test_readme_is_short():
    assert len(README.splitlines()) < 150
    example = re.search(r"## In fifteen lines\n\n```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len([line for line in example.splitlines() if line]) <= 15
    assert f"```python\n{example}```" in (DOCS / "index.md").read_text(), "the same as on the first page"


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    if example.stem == "export_to_onnx":
        pytest.importorskip("onnxruntime")
        skip_unless_onnx_has_open_sizes()
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("script", sorted((DOCS / "figures").glob("*.py")), ids=lambda path: path.stem)
def test_figures_can_be_drawn(script, tmp_path, monkeypatch):
    """As large as the one that is there; in a page, as any figure is."""
    image = pytest.importorskip("matplotlib.image")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    runpy.run_path(str(script))["main"](tmp_path)
    (drawn,) = tmp_path.iterdir()
    assert image.imread(drawn).shape == image.imread(script.with_suffix(".png")).shape
    assert any(f"{script.stem}.png" in document.read_text() for document in DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_linked_file_exists(document):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_named_file_exists(document):
    for name in re.findall(r"`((?:benchmarks|docs|examples|fxhash|tests)/[\w./-]*)`", document.read_text()):
        assert (ROOT / name).exists() or (ROOT / "fxhash" / name).exists(), name


def test_every_public_function_is_in_the_readme():
    for name in fxhash.__all__:
        if callable(getattr(fxhash, name)) and name.islower():
            assert f"fxhash.{name}(" in README, name


def test_the_reference_has_every_public_name():
    described = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(), re.MULTILINE)
    # The module `fxhash.summary` has the name of its function.
    expected = {f"fxhash.{name}" for name in fxhash.__all__ if name != "__version__"} - {"fxhash.summary"}
    assert expected | {"fxhash.summary.summary"} <= set(described)
    training = pytest.importorskip("fxhash.training")
    assert {f"fxhash.training.{name}" for name in training.__all__} <= set(described)


@pytest.mark.parametrize("document", [README, BENCHMARKS], ids=["README", "benchmarks"])
def test_the_table_of_the_demonstration_is_the_recorded_one(document):
    record = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    for row in record["results"]:
        expected = (
            f"| {row['name']} | {row['parameters']:,} | {row['accuracy']:.1%} | {row['file_bytes'] / 1e3:,.0f} "
            f"| {row['milliseconds']:.2f} | {row['ratio']:.2f} | {row['resident_bytes'] / 1e3:,.0f} |"
        )
        assert expected in document
    text = " ".join(document.split())
    assert record["conclusion"] in text
    assert f"{record['images']['train']:,} for training, {record['images']['test']:,} for the test" in text
    assert f"one seed, {record['epochs']} epochs" in text


def test_the_demonstration_states_what_its_figures_are():
    results = pytest.importorskip("fxhash.demo.results")
    work = pytest.importorskip("fxhash.demo.work")
    record = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    rows = [results.Result(**row) for row in record["results"]]
    assert results.conclusion(rows, record["images"]["test"]) == record["conclusion"]
    # What is recorded is what the command does today.
    assert work.Work(**{**record["work"], "compressions": tuple(record["work"]["compressions"])}) == work.Work()
    assert all(row.ratio < 1 for row in rows if row.method.startswith("fxhash"))


def measured(model, candidate, batch):
    """The recorded result of the benchmark; None if it was not run."""
    for file in sorted((ROOT / "benchmarks" / "results").glob("deploy_*.json")):
        for result in json.loads(file.read_text())["results"]:
            if (result["model"], result["candidate"], result["batch"]) == (model, candidate, batch):
                return result
    return None


def ratio_to_dense(model, candidate, batch):
    result = measured(model, candidate, batch)
    return "not run" if result is None else f"{result['ratio_to_dense']:.2f}"


DEPLOYED = ["resnet34", "resnet50", "vit_b_16", "mobilenet_v3_large", "encoder", "recommender"]


@pytest.mark.parametrize("model", DEPLOYED)
def test_deployment_table_is_the_recorded_benchmark(model):
    cells = [ratio_to_dense(model, f"fxhash {compress} aspect 16", 1) for compress in ("1%", "2%", "5%", "10%", "25%")]
    memory = measured(model, "fxhash 2% aspect 16", 1)["weight_bytes"] / measured(model, "dense", 1)["weight_bytes"]
    assert f" | {' | '.join(cells)} | {memory:.1%} |" in BENCHMARKS


def test_table_of_runtimes_is_the_recorded_one(monkeypatch):
    # Where its own imports are.
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = runpy.run_path(str(ROOT / "benchmarks" / "runtimes_table.py"))
    written = table["block"](table["RECORD"])
    assert written.count("\n") > 20
    assert written in BENCHMARKS


def test_the_readme_states_the_latencies_in_onnx_runtime():
    record = json.loads((ROOT / "benchmarks" / "results" / "runtimes.json").read_text())
    ratios = {row["candidate"]: row["ratio_to_onnx"] for row in record["results"] if row["model"] == "resnet34"}
    small, larger, int8 = (
        ratios[form] for form in ("fxhash 2%, ONNX Runtime", "fxhash 10%, ONNX Runtime", "dense, ONNX Runtime, int8")
    )
    text = " ".join(README.split())
    assert f"took {small:.2f} of the dense latency at 2 % and {larger:.2f} at 10 %, in 8 bits {int8:.2f}" in text


COMPARED = [
    "fxhash {} aspect 16",
    "fxhash {} aspect 16, unlimited memory",
    "fxhash {} aspect 16, whole convolutions",
    "fxhash {} aspect 1",
    "parametrize {}",
    "FeatherMap {}",
    "dense, norms folded",
]


@pytest.mark.parametrize("candidate", COMPARED)
def test_comparison_is_the_recorded_benchmark(candidate):
    cells = [
        ratio_to_dense("resnet34", candidate.format(compress), batch)
        for compress in ("2%", "10%")
        for batch in (1, 8, 100)
    ]
    assert f" | {' | '.join(cells)} |" in BENCHMARKS


def test_figures_of_the_cost_model_are_the_recorded_ones():
    record = json.loads((ROOT / "benchmarks" / "results" / "costs.json").read_text())
    text = " ".join(LOWERING.split())
    assert f"Over {record['cases']} cases of layers" in text
    assert f"took {record['regret_mean'] - 1:.1%} longer than" in text
    assert f"{record['regret_worst']:.2f} times, at worst" in text


def test_the_explanation_of_a_plan_quotes_it():
    """The printed plan itself is compared by `test_documented_commands.py`."""
    plan, explanation = re.search(r"```text\n(.*?)```\n(.*)", LOWERING, re.DOTALL).groups()
    quotes = re.findall(r"^\| (`.*?) \|", explanation, re.MULTILINE)
    assert len(quotes) > 10
    for quote in re.findall(r"`([^`]+)`", " ".join(quotes)):
        pattern = ".*".join(re.escape(piece) for piece in quote.split(" ... "))
        assert re.search(pattern, plan), quote
    assert "generates 2,641,248 weights" in plan
    assert f"Its {2702 * 256:,} entries generate 2,641,248 weights" in explanation


def test_figures_in_the_text_are_the_recorded_ones():
    text = " ".join(BENCHMARKS.split())
    unlimited = measured("mobilenet_v3_large", "fxhash 2% aspect 16, unlimited memory", 1)["ratio_to_dense"]
    assert f"with unlimited memory it takes {unlimited:.2f} of the dense latency" in text
    dense, small = measured("recommender", "dense", 100), measured("recommender", "fxhash 1% aspect 16", 100)
    assert f"in {dense['milliseconds']:.2f} ms for 100 pairs; at 1 % it takes {small['milliseconds']:.2f} ms" in text
    assert f"{small['weight_bytes'] / dense['weight_bytes']:.1%} of the bytes" in text


def test_figures_under_the_compiler_are_the_recorded_ones():
    record = json.loads((ROOT / "benchmarks" / "results" / "compiled_resnet34.json").read_text())
    ratios = {result["candidate"]: result["ratio_to_dense"] for result in record["results"] if result["batch"] == 1}
    two, ten = (ratios[f"fxhash {compress} aspect 16, compiled"] for compress in ("2%", "10%"))
    text = " ".join(BENCHMARKS.split())
    assert f"took {two:.2f} of the dense (eager) latency at 2 %, batch 1, and {ten:.2f} at 10 %" in text
    assert f"the dense model compiled takes {ratios['dense, compiled']:.2f} " in text


def test_steps_of_training_are_the_recorded_ones():
    time, memory = (
        {(row["model"], row["candidate"]): row for row in json.loads(path.read_text())["results"]}
        for path in (ROOT / "benchmarks" / "results" / f"{name}.json" for name in ("training_lowered", "training"))
    )
    for model in {model for model, _ in time}:
        times = [f"{time[model, f'fxhash {each}']['ratio_to_dense']:.2f}" for each in STEPS]
        peaks = [f"{memory[model, f'fxhash {each}']['peak_ratio']:.2f}" for each in STEPS[1::2]]
        assert f", {time[model, 'dense']['batch']} | {' | '.join(times + peaks)} |" in BENCHMARKS
        assert all(len(time[model, f"fxhash {each}"]["ratios"]) == 9 for each in STEPS)


STEPS = ["2%", "2%, lowered", "10%", "10%, lowered"]


def recorded_runs():
    with (ROOT / "benchmarks" / "results" / "recipes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_table_of_runs_is_the_recorded_one():
    for run in recorded_runs():
        expected = (
            f"| {int(run['trainable_after']):,} | {float(run['test_accuracy']):.2%} | {run['seed']} "
            f"| {float(run['minutes']):.0f} | `{run['command']}` |"
        )
        assert expected in BENCHMARKS


def test_recipes_state_the_recorded_figures():
    names = ("model", "data", "compress", "seed", "epochs", "precision", "trainable_after", "test_accuracy")
    for recipe in {run["recipe"] for run in recorded_runs()}:
        values = json.loads((ROOT / "fxhash" / "training" / "recipes" / f"{recipe}.json").read_text())
        # Runs of 10 epochs are of the front, and have a test beside it.
        of_30_epochs = [figures for figures in values["reached"] if figures["epochs"] == 30]
        stated = [{name: str(figures[name]) for name in names} for figures in of_30_epochs]
        assert stated == [{name: run[name] for name in names} for run in recorded_runs() if run["recipe"] == recipe]


def accuracies_of_repeated_runs(file_name="accuracy.csv"):
    """Trained parameters, learning rate and accuracies over seeds, of whatever was run with three at its best rate."""
    with (ROOT / "benchmarks" / "results" / file_name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    cells = defaultdict(list)
    for row in rows:
        cells[row["variant"], row["network"], row["compress"], row["epochs"]].append(row)
    for cell in cells.values():
        first = [row for row in cell if row["seed"] == "0"]
        rate = max(first, key=lambda row: float(row["test_accuracy"]))["learning_rate"]
        chosen = [row for row in cell if row["learning_rate"] == rate]
        if len(chosen) >= 3:
            accuracies = [100 * float(row["test_accuracy"]) for row in chosen]
            yield int(chosen[0]["trainable_after"]), rate, accuracies, chosen[0]["variant"]


def test_table_of_accuracies_is_the_recorded_one():
    rows = list(accuracies_of_repeated_runs())
    assert len(rows) == len(re.findall(r" \| [\d,]+ \| [\d.]+ ± [\d.]+ \| ", ACCURACY))
    for trained, rate, accuracies, _ in rows:
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        assert f" | {trained:,} | {mean:.1f} ± {deviation:.1f} | {rate} |" in ACCURACY


def test_accuracies_of_repeated_variants_are_the_recorded_ones():
    recorded = {
        variant: f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}"
        for file_name in ("accuracy.csv", "accuracy_variants.csv")
        for trained, _, accuracies, variant in accuracies_of_repeated_runs(file_name)
        if file_name == "accuracy_variants.csv" or (variant, trained) == ("fxhash-16", 26_972)
    }
    assert (
        f"a square `W` reaches {recorded['fxhash-1']}, a `right` that stays as it is initialized "
        f"{recorded['fxhash-16-frozen']}, a trained diagonal {recorded['fxhash-16-diagonal']}, the default "
        f"{recorded['fxhash-16']}."
    ) in " ".join(ACCURACY.split())


def test_accuracies_of_factors_trained_in_fewer_bits_are_the_recorded_ones():
    means = {}
    for trained, _, accuracies, variant in accuracies_of_repeated_runs("factor_bits.csv"):
        means[variant, trained] = statistics.mean(accuracies), statistics.stdev(accuracies)
    few, many = 26_972, 67_430
    assert f"| factors trained | 10 %: {few:,} parameters | 25 %: {many:,} parameters |" in ACCURACY
    for name, variant in (("floating point", ""), ("8 bits", "-8-bits"), ("4 bits", "-4-bits")):
        cells = ["{:.1f} ± {:.1f}".format(*means[f"fxhash-16{variant}", trained]) for trained in (few, many)]
        assert f"| in {name} | {' | '.join(cells)} |" in ACCURACY
    lost = {
        (bits, trained): means["fxhash-16", trained][0] - means[f"fxhash-16-{bits}-bits", trained][0]
        for bits in (8, 4)
        for trained in (few, many)
    }
    assert max(lost[8, few], lost[8, many], lost[4, many]) < 0
    assert f"4 bits lose nothing at 25 %, and {lost[4, few]:.1f} points at 10 %" in ACCURACY
    with (ROOT / "benchmarks" / "results" / "accuracy_pilots.csv").open(newline="") as file:
        all_in_four = [
            100 * float(row["test_accuracy"])
            for row in csv.DictReader(file)
            if "right in 4 bits too" in row["what"] and (row["compress"], row["learning_rate"]) == ("0.1", "0.08")
        ]
    assert len(all_in_four) == 3
    further = means["fxhash-16", few][0] - statistics.mean(all_in_four)
    assert f"in 4 bits as well, it lost {further:.1f} points at 10 % with the same seeds" in " ".join(ACCURACY.split())


def test_figures_of_scale_are_the_recorded_ones():
    results = ROOT / "benchmarks" / "results"
    large = json.loads((results / "scaling_large.json").read_text())["results"]
    text = " ".join(BENCHMARKS.split())
    assert f"A decoder of {large['parameters']:,} parameters ({large['dense_megabytes'] / 1e3:.1f} GB" in text
    assert f"has {large['trained_parameters']:,} to train" in text
    assert f"takes {large['transform']['seconds']:.0f} s, which" in text
    assert f"more than {large['one_token']['peak_megabytes'] / 1e3:.1f} GB of memory" in text
    assert f"One token takes {large['one_token']['seconds']:.1f} s" in text
    for result in json.loads((results / "scaling_tensors.json").read_text())["results"]:
        each = result["milliseconds_each"]
        cells = [f"{each['plan']:.3f}", *(f"{each[step]:.2f}" for step in ("transform_on_meta", "transform", "lower"))]
        assert f"| {result['tensors']:,} | {' | '.join(cells)} |" in BENCHMARKS


def test_rules_of_thumb_are_the_recorded_figures():
    """What `Choosing a size` and the README say of latency."""
    ratios = {
        compress: [measured(model, f"fxhash {compress} aspect 16", 1)["ratio_to_dense"] for model in DEPLOYED]
        for compress in ("1%", "2%", "5%", "25%")
    }
    assert [sum(ratio < 1 for ratio in row) for row in ratios.values()] == [5, 5, 5, 0]
    assert len(DEPLOYED) == 6
    text = " ".join(CHOOSING.split())
    assert "at 1 to 5 %, five of six measured models took less time than dense at batch 1; at 25 % none did" in text
    assert "often faster than dense at 1 to 5 % of the size, and slower at 25 %" in README


def test_changelog_has_the_version():
    assert f"## {fxhash.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_figures_of_pages_in_the_browser_are_the_recorded_ones():
    record = json.loads((ROOT / "benchmarks" / "results" / "browser.json").read_text())
    page = (DOCS / "guide" / "browser.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert table == [
        f"| {row['page']} | {row['model_bytes'] / 1e3:.1f} | {row['model_bytes_gzip'] / 1e3:.1f} "
        f"| {row['session_milliseconds']:.0f} | {row['session_again_milliseconds']:.0f} "
        f"| {row['picture_milliseconds']:.2f} | {row['largest_difference']:.0e} |"
        for row in record["results"]
    ]
    text = " ".join(page.split())
    first = record["results"][0]
    assert f"{first['runtime_bytes'] / 1e6:.1f} MB, {first['runtime_bytes_gzip'] / 1e6:.1f} MB compressed" in text
    assert f"A {record['network'].replace('resnet', 'ResNet-')} on digits" in text
    assert f"in {record['browser'].removesuffix(', headless')}" in text
    assert f"`onnxruntime-web` {record['onnxruntime-web']}" in text
    assert f"{record['rounds']} rounds of {record['calls']} pictures and {record['starts']} starts" in text
    assert f"{record['pictures']} test images" in text
    eight_bits = next(row for row in record["results"] if row["page"] == "fxhash 10 %, 8 bits")
    assert eight_bits["model_bytes"] < 60_000
    assert all(row["picture_milliseconds"] < 2 and row["largest_difference"] < 1e-5 for row in record["results"])
