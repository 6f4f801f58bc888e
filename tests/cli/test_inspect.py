"""`fxhash inspect`: what it prints of a model and of a saved file, and the options that it refuses."""

from pathlib import Path

import pytest

import fxhash
from fxhash import zoo
from fxhash.storage.checkpoint import read_plan
from tests.cli.helpers import assert_one_line, run


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    fxhash.save(fxhash.transform(zoo.create("resnet8"), compress=0.25), path)
    return path


class TestModel:
    def test_prints_the_summary_of_the_transformed_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        options = {
            "compress": 0.2,
            "aspect": 4.0,
            "separable": False,
            "include": [r"stage\d"],
            "exclude": ["stage1", "bn"],
        }
        expected = str(fxhash.summary(fxhash.transform(zoo.create("resnet8"), **options)))
        capsys.readouterr()
        result = run(
            *("inspect", "zoo:resnet8", "--compress", "0.2", "--aspect", "4", "--whole"),
            *("--include", r"stage\d", "--exclude", "stage1", "--exclude", "bn"),
        )
        assert result.stdout == f"{expected}\n"

    def test_compresses_to_a_tenth_by_default(self) -> None:
        assert run("inspect", "zoo:resnet8").stdout == run("inspect", "zoo:resnet8", "--compress=0.1").stdout

    @pytest.mark.parametrize(
        "options", [["--compress", "2"], ["--compress", "1e-6"], ["--aspect", "-1"], ["--include", "("]]
    )
    def test_options_that_transform_refuses(self, options: list[str]) -> None:
        name, value = options[0].removeprefix("--"), options[1]
        with pytest.raises(fxhash.FxhashError) as caught:
            fxhash.transform(
                zoo.create("resnet8"), **{"compress": 0.1, name: [value] if value == "(" else float(value)}
            )
        line = " ".join(str(caught.value).split())
        assert_one_line(run("inspect", "zoo:resnet8", *options), line, status=1)


class TestFile:
    def test_prints_the_plan(self, saved: Path) -> None:
        result = run("inspect", str(saved))
        assert result.exit_code == 0
        assert result.stdout == f"{read_plan(saved)}\n"
        assert "stage1.0.conv1.weight" in result.stdout

    def test_refuses_options_that_a_file_has_settled(self, saved: Path) -> None:
        result = run("inspect", str(saved), "--compress", "0.5", "--exclude", "fc")
        line = f"--compress, --exclude: a saved file has its plan already; omit this for {str(saved)!r}"
        assert_one_line(result, line, status=2)

    def test_missing_file(self, tmp_path: Path) -> None:
        result = run("inspect", str(tmp_path / "none.safetensors"))
        assert result.exit_code == 1
        assert "none.safetensors" in result.stderr
        assert result.stderr.count("\n") == 1

    def test_truncated_file(self, saved: Path) -> None:
        saved.write_bytes(saved.read_bytes()[:100])
        result = run("inspect", str(saved))
        assert result.exit_code == 1
        assert result.stderr.startswith("fxhash: error: ")
        assert result.stderr.count("\n") == 1
