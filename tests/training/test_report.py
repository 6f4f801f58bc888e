"""Reports on runs: the numbers, the forms, and runs that are unfinished, damaged or none."""

from __future__ import annotations

import html
import json
import re
import statistics
import sys

import pytest
import typer.testing
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import fxhash
from fxhash import cli, zoo
from fxhash.errors import CheckpointError, TrainingError

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from fxhash import training
from fxhash.training import RunOptions, load_recipe, write_report
from fxhash.training.report import figures
from fxhash.training.report.comparison import compare, mean_and_deviation

CURVES = (
    "epoch,train_loss,test_loss,test_accuracy,learning_rate,seconds\n1,2.0,1.9,0.4,0.01,3.25\n2,1.5,1.2,0.6,0.0,3.5\n"
)


def fake_run(folder, accuracy=0.9, *, finished=True, curves=CURVES, changes=None, size=7500, **options):
    """A folder as a run leaves it, with these numbers in it."""
    values = {"model": "resnet8", "data": "digits", "compress": None, **options}
    recipe = load_recipe("digits").with_changes({"epochs": 2, **(changes or {})})
    folder.mkdir(parents=True)
    images = {"classes": ["cat", "dog"], "channels": 3, "size": [32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}
    (folder / "run.json").write_text(json.dumps({"options": RunOptions(recipe=recipe, **values).to_dict(), **images}))
    (folder / "metrics.csv").write_text(curves)
    if finished:
        result = {"trainable_before": 75_002, "trainable_after": size, "test_accuracy": accuracy, "test_loss": 0.25}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "compressed"
    recipe = load_recipe("digits").with_changes({"epochs": 1})
    training.train(RunOptions("resnet8", "digits", recipe, 0.3), folder, console=Console(quiet=True))
    return folder


def page(folders, output):
    assert write_report(folders, output) == (output,)
    return output.read_text()


def rows(text):
    """Cells of all rows of all tables of a page."""
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr.*?>(.*?)</tr>", text)
    ]


def row_of(name, text):
    (row,) = [row for row in rows(text) if row[0] == name]
    return row


def assert_self_contained(text):
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in re.findall(r'src="([^"]*)"', text))
    without_images = re.sub(r'src="[^"]*"', "", text)
    for reference in ("http", "href", "<script", "<link", "@import", "url(", "src="):
        assert reference not in without_images, reference


def test_a_real_run_in_html(compressed, tmp_path):
    text = page([compressed], tmp_path / "report.html")
    result = json.loads((compressed / "result.json").read_text())
    row = row_of(str(compressed), text)
    assert row[1:4] == ["resnet8", "digits", "30 %"]
    assert row[4:6] == [f"{result['trainable_before']:,}", f"{result['trainable_after']:,}"]
    assert row[6] == f"{(compressed / 'model.safetensors').stat().st_size / 1e3:,.1f}"
    assert row[7:12] == [f"{result['test_accuracy']:.2%}", f"{result['test_loss']:.4f}", "1", "0", "digits"]
    assert_self_contained(text)
    assert text.count("<img") == 2
    plan = fxhash.storage.reading.read_plan(compressed / "model.safetensors")
    table = rows(text.partition("<details>")[2])
    assert table == [list(row) for row in plan.table()]
    assert row_of("conv1.weight", text)[:3] == ["conv1.weight", "16x1x3x3", "hashed"]
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_seeds_have_a_mean_and_a_deviation(tmp_path):
    accuracies = [0.90, 0.92, 0.97]
    folders = [fake_run(tmp_path / str(seed), value, seed=seed) for seed, value in enumerate(accuracies)]
    text = page(folders, tmp_path / "report.html")
    row = row_of("mean of 3 seeds", text)
    assert row[7] == f"{statistics.mean(accuracies):.2%} ± {statistics.stdev(accuracies):.2%}"
    assert row[7] == "93.00% ± 3.61%"
    assert row[8] == "0.2500 ± 0.0000"
    assert row[10] == "0, 1, 2"
    assert row[12] == "6.8 ± 0.0"
    assert [row_of(str(folder), text)[7] for folder in folders] == ["90.00%", "92.00%", "97.00%"]


@given(st.lists(st.floats(0, 1), min_size=2))
def test_mean_and_deviation(values):
    assert mean_and_deviation(values).mean == pytest.approx(sum(values) / len(values))
    assert mean_and_deviation(values).deviation == pytest.approx(statistics.stdev(values))


@pytest.mark.parametrize(
    "other",
    [
        {"compress": 0.5},
        {"model": "resnet20"},
        {"data": "mnist"},
        {"changes": {"weight_decay": 0.1}},
        {"image_size": 8},
        {"model_options": {"width": 32}},
    ],
)
def test_runs_that_differ_in_more_than_the_seed_have_no_mean(other, tmp_path):
    folders = [fake_run(tmp_path / "first"), fake_run(tmp_path / "second", seed=1, **other)]
    assert [len(group.runs) for group in compare(folders)] == [1, 1]
    assert "mean of" not in page(folders, tmp_path / "report.html")
    labels = {group.label for group in compare(folders)}
    assert len(labels) == 2, labels


def test_where_files_are_makes_no_difference(tmp_path):
    folders = [fake_run(tmp_path / "first"), fake_run(tmp_path / "second", seed=1, data_folder="elsewhere")]
    assert [len(group.runs) for group in compare(folders)] == [2]


def test_a_copy_of_a_run_is_no_further_evidence(tmp_path):
    folders = [fake_run(tmp_path / "first"), fake_run(tmp_path / "copy")]
    text = page([*folders, folders[0], tmp_path / "copy" / ".." / "first"], tmp_path / "report.html")
    assert "mean of" not in text
    assert len([row for row in rows(text) if row[7] == "90.00%"]) == 2


def test_the_largest_come_first(tmp_path):
    sizes = {0.1: 7500, None: 75_002, 0.3: 22_500}
    folders = [fake_run(tmp_path / str(size), size=size, compress=compress) for compress, size in sizes.items()]
    # Fake runs have no file of a model, so no table of layers.
    after = [row[5] for row in rows(page(folders, tmp_path / "report.html"))]
    assert after == ["after", "75,002", "22,500", "7,500"]


def test_changes_of_the_recipe_are_shown(tmp_path):
    folder = fake_run(tmp_path / "run", changes={"learning_rate": 0.5, "optimizer": "sgd"})
    assert row_of(str(folder), page([folder], tmp_path / "report.html"))[11] == (
        "digits, optimizer sgd, learning_rate 0.5"
    )


def test_an_unfinished_run_has_its_curves(compressed, tmp_path):
    only_one = "\n".join(CURVES.splitlines()[:2]) + "\n"
    for name, curves, images in (("some", only_one, 1), ("nothing", CURVES.partition("\n")[0] + "\n", 0)):
        folder = fake_run(tmp_path / name, finished=False, curves=curves, compress=0.1)
        text = page([folder], tmp_path / f"{name}.html")
        assert row_of(str(folder), text)[4:10] == ["", "", "", "unfinished", "", f"{images} of 2"]
        assert text.count("<img") == images
        assert "No run is finished." in text
        assert len(write_report([folder], tmp_path / f"{name}.md")) == 1 + images
        with pytest.raises(TrainingError, match=r"none of the runs is finished: an \.html or \.md has their curves"):
            write_report([folder], tmp_path / f"{name}.png")
    (tmp_path / "some" / "metrics.csv").unlink()
    together = page([tmp_path / "some", compressed], tmp_path / "report.html")
    assert together.count("<img") == 2
    assert row_of(str(tmp_path / "some"), together)[9] == "0 of 2"


# Of a formula that is none, of HTML, of Markdown, and in letters that the font lacks.
HOSTILE = "a$\\frac$ <script>alert('1')</script> & \"b\" |`*_c_*` 字"


def test_text_of_files_stays_text(compressed, tmp_path):
    folder = fake_run(tmp_path / "run", data=HOSTILE, model="<i>m</i>")
    text = page([folder, compressed], tmp_path / "report.html")
    assert "<script" not in text
    assert "<i>" not in text
    assert row_of(str(folder), text)[1:3] == ["<i>m</i>", HOSTILE]
    assert_self_contained(text)
    write_report([folder, compressed], tmp_path / "report.md")
    (line,) = [line for line in (tmp_path / "report.md").read_text().splitlines() if "alert" in line and "|" in line]
    assert len(re.findall(r"(?<!\\)\|", line)) == 14
    assert "<" not in line
    assert r"\`\*\_c\_\*\`" in line


def test_markdown_has_its_figures_beside_it(compressed, tmp_path):
    output = tmp_path / "my report.md"
    assert write_report([compressed], output) == (tmp_path / "my report.figures.png", output)
    text = output.read_text()
    assert "![figures](<my report.figures.png>)" in text
    assert (tmp_path / "my report.figures.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((compressed / "result.json").read_text())
    assert f"| {result['test_accuracy']:.2%} | {result['test_loss']:.4f} | 1 | 0 | digits |" in text
    assert "| conv1.weight | 16x1x3x3 | hashed |" in text


def test_a_figure_alone(compressed, tmp_path):
    dense = fake_run(tmp_path / "dense", size=75_002)
    assert write_report([compressed, dense], tmp_path / "x.png") == (tmp_path / "x.png",)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_bytes(compressed, tmp_path):
    dense = fake_run(tmp_path / "dense")
    assert page([compressed, dense], tmp_path / "a.html") == page([dense, compressed], tmp_path / "b.html")


@pytest.mark.parametrize("name", ["report.pdf", "report", "report.HTM"])
def test_other_file_extensions(name, tmp_path):
    folder = fake_run(tmp_path / "run")
    with pytest.raises(TrainingError, match=rf"the file extension of '.*{name}' must be one of \.html, \.md, \.png"):
        write_report([folder], tmp_path / name)
    assert not (tmp_path / name).exists()


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(TrainingError, match=r"there is no run in .*: it has no run\.json"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(TrainingError, match="give the folder of a run"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_what_is_no_run_among_runs_is_left_out(tmp_path):
    """As `fxhash report runs/*` names it: a report of before, the folder of something else."""
    folder, other, file = fake_run(tmp_path / "run"), tmp_path / "other", tmp_path / "old.html"
    other.mkdir()
    file.write_text("")
    warned = []
    write_report([folder, other, file], tmp_path / "report.html", warned.append)
    assert warned == [f"{str(each)!r} is left out: it holds no run, since it has no run.json" for each in (other, file)]
    assert (tmp_path / "report.html").read_text() == page([folder], tmp_path / "alone.html")
    with pytest.warns(UserWarning, match="other' is left out"):
        write_report([folder, other], tmp_path / "report.html")


def test_reports_of_one_name_have_files_of_their_own(compressed, tmp_path):
    """Markdown and a figure, in any order."""
    names = ["report.md", "report.png", "report.html"]
    alone = {}
    for name in names:
        (tmp_path / name).mkdir()
        alone |= {path.name: path.read_bytes() for path in write_report([compressed], tmp_path / name / name)}
    assert len(alone) == 4
    (tmp_path / "all").mkdir()
    for name in [*names, *names[::-1]]:
        write_report([compressed], tmp_path / "all" / name)
    assert {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()} == alone


@pytest.mark.parametrize("count", [2, 12])
@pytest.mark.parametrize("settings", [0, 3, 9])
def test_legends_are_not_cropped(count, settings, tmp_path):
    from matplotlib.figure import Figure

    changes = {
        **{"optimizer": "sgd", "learning_rate": 0.0123, "weight_decay": 0.00456, "schedule": "cosine"},
        **{"label_smoothing": 0.123, "clip_gradients": 1.23, "ema_decay": 0.987, "pad": 2, "precision": "bf16"},
    }
    changed = dict(list(changes.items())[:settings])
    folders = [
        fake_run(tmp_path / str(index), changes=changed if index % 2 else {}, compress=(index + 1) / 100)
        for index in range(count)
    ]
    groups = compare(folders)
    assert len(groups) == count
    for draw in (figures.curves, figures.accuracy_over_size):
        figure = Figure(figsize=figures.size_of(groups), dpi=150, layout="constrained")
        draw(figure, groups)
        figure.draw_without_rendering()
        legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
        (legend,) = legends
        box, page_box = legend.get_window_extent(), figure.bbox
        assert page_box.x0 <= box.x0 < box.x1 <= page_box.x1
        assert page_box.y0 <= box.y0 < box.y1 <= page_box.y1
        for axes in figure.axes:
            assert axes.get_position().height > 0.3, "the curves have room"


def test_a_page_of_1200_pixels_holds_the_table(tmp_path):
    """Long names wrap, and numbers don't: at 13 pixels a letter is 7 wide, and a cell has 12 pixels beside it."""
    folders = [
        fake_run(tmp_path / ("a-long-name-of-a-run-" * 4 + str(seed)), seed=seed, changes={"learning_rate": 0.123})
        for seed in range(3)
    ]
    text = page(folders, tmp_path / "report.html")
    heading, *cells = rows(text)
    wraps = {0, 1, 11}
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading)) if column not in wraps]
    words = [max(map(len, heading[column].split())) for column in range(len(heading)) if column not in wraps]
    numbers = sum(7 * max(pair) + 12 for pair in zip(widths, words, strict=True))
    assert numbers + 3 * (8 * 13 + 12) <= 1200 - 2 * 15
    for column in wraps:
        assert f".runs td:nth-child({column + 1})" in text
    assert '<div class="runs">' in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", "{"),
        ("result.json", '{"test_accuracy": 1}'),
        ("result.json", "[]"),
        ("metrics.csv", "epoch,train_loss\n1,2\n"),
        ("metrics.csv", CURVES.replace("1.5", "much")),
        ("metrics.csv", CURVES + "3,1.0\n"),
    ],
)
def test_damaged_files_are_named(file, content, tmp_path):
    folder = fake_run(tmp_path / "run")
    (folder / file).write_text(content)
    with pytest.raises(TrainingError, match=rf"run.{file}' can't be read"):
        write_report([folder], tmp_path / "report.html")


def test_a_damaged_model_is_named(tmp_path):
    folder = fake_run(tmp_path / "run", compress=0.3)
    fxhash.save(fxhash.transform(zoo.create("resnet8"), 0.3), folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"run.model\.safetensors is damaged"):
        write_report([folder], tmp_path / "report.html")


def test_a_report_is_whole_or_not_there(tmp_path, monkeypatch):
    folder = fake_run(tmp_path / "run")
    output = tmp_path / "report.html"
    before = page([folder], output)

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(TrainingError, match=r"report\.html' can't be written: no space left"):
        write_report([folder, fake_run(tmp_path / "other")], output)
    assert output.read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "other", "report.html"}


class TestCommand:
    def run(self, *arguments):
        return typer.testing.CliRunner().invoke(cli.create_app(), ["report", *arguments], catch_exceptions=False)

    def test_writes_a_page_where_it_is_called(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        fake_run(tmp_path / "a")
        fake_run(tmp_path / "b", seed=1)
        result = self.run("a", "b")
        assert (result.exit_code, result.stdout) == (0, "report: report.html\n")
        assert row_of("mean of 2 seeds", (tmp_path / "report.html").read_text())

    @pytest.mark.parametrize(
        ("run", "output", "line"),
        [
            ("run", "x.txt", "the file extension of 'x.txt' must be one of .html, .md, .png"),
            ("none", "x.html", "there is no run in 'none': it has no run.json"),
            ("run", "none/x.html", "'none/x.html' can't be written: "),
        ],
    )
    def test_mistakes_end_in_one_line(self, run, output, line, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        fake_run(tmp_path / "run")
        result = self.run(run, "--output", output)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"fxhash: error: {line}")
        assert result.stderr.count("\n") == 1

    def test_what_is_no_run_is_named(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        fake_run(tmp_path / "run")
        result = self.run("run", "none")
        line = "'none' is left out: it holds no run, since it has no run.json"
        assert (result.exit_code, result.stdout) == (0, "report: report.html\n")
        assert result.stderr == f"fxhash: warning: {line}\n"

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        result = self.run(str(fake_run(tmp_path / "run")))
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == ('fxhash: error: matplotlib is not installed; to get it: pip install "fxhash[train]"\n')
