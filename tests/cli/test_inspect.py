"""`fxhash inspect`: what it prints of a model and of a saved file, and the options that it refuses."""

from pathlib import Path

import pytest
import torch

import fxhash
from fxhash import zoo
from fxhash.cli.errors import in_options
from fxhash.storage.reading import read_plan
from tests.cli.helpers import assert_one_line, run, run_process
from tests.storage.forgery import forge, opened


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
        example = (torch.rand(2, 3, 32, 32),)
        expected = fxhash.summary(fxhash.transform(zoo.create("resnet8"), **options, example_inputs=example))
        capsys.readouterr()
        result = run(
            *("inspect", "zoo:resnet8", "--compress", "0.2", "--aspect", "4", "--whole"),
            *("--include", r"stage\d", "--exclude", "stage1", "--exclude", "bn"),
        )
        assert result.stdout == f"{expected}\n\n{expected.table}\n"

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
        line = in_options(" ".join(str(caught.value).split()), ("compress", "aspect", "include"))
        assert f"--{name} " in line
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

    def test_names_are_printed_with_escapes_shown(self, saved: Path) -> None:
        plan, tensors = opened(saved)
        first, *others = plan["parameters"]
        first.update(fqn="\x1b[2J\x1b]0;title\x07", aliases=["a\u202eb\nc"])
        others[0]["dense_because"] = "\x9b31m\u200b"
        plan["unused"] = ["\r\x1b[A"]
        forge(saved, plan, tensors)
        result = run("inspect", str(saved))
        assert result.exit_code == 0
        assert result.stdout.replace("\n", "").isprintable()
        assert r"\x1b[2J\x1b]0;title\x07 = a\u202eb\nc" in result.stdout
        assert r"\x9b31m\u200b" in result.stdout
        assert r"dropped: \r\x1b[A" in result.stdout

    def test_an_error_is_printed_with_escapes_shown(self, saved: Path, tmp_path: Path) -> None:
        plan, tensors = opened(saved)
        forge(saved, {**plan, "format": "\x1b[2J"}, tensors)
        result = run("inspect", str(saved))
        assert result.exit_code == 1
        assert result.stderr.rstrip("\n").isprintable()
        assert r"\x1b[2J" in result.stderr
        result = run("inspect", str(tmp_path / "\x1b[2J.safetensors"))
        assert result.stderr.rstrip("\n").isprintable()

    def test_letters_that_the_terminal_has_not(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plan, tensors = opened(saved)
        plan["parameters"][0]["fqn"] = "größe"
        forge(saved, plan, tensors)
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        result = run_process("inspect", str(saved))
        assert result.returncode == 0, result.stderr
        assert r"gr\xf6\xdfe" in result.stdout

    def test_a_long_name_makes_no_other_row_long(self, saved: Path) -> None:
        plan, tensors = opened(saved)
        plan["parameters"][0]["fqn"] = "n" * 900
        forge(saved, plan, tensors)
        first, second, *_ = sorted(run("inspect", str(saved)).stdout.splitlines(), key=len, reverse=True)
        assert len(first) > 900
        assert len(second) < 300

    def test_values_that_are_not_finite(self, saved: Path) -> None:
        plan, tensors = opened(saved)
        tensors["smh_generator.right"][0, 0] = float("nan")
        forge(saved, plan, tensors)
        line = (
            f"{saved} would give wrong outputs: 'smh_generator.right' holds NaN. fxhash.load(..., allow_nan=True) "
            "takes it as it is"
        )
        assert_one_line(run("inspect", str(saved)), line, status=1)

    def test_truncated_file(self, saved: Path) -> None:
        saved.write_bytes(saved.read_bytes()[:100])
        result = run("inspect", str(saved))
        assert result.exit_code == 1
        assert result.stderr.startswith("fxhash: error: ")
        assert result.stderr.count("\n") == 1
