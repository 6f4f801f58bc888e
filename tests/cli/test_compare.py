"""`fxhash compare`: its targets, its options and its mistakes; what it measures is in `tests/compare`."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxhash.cli.errors import UsageError
from fxhash.cli.inputs import read_input
from tests.cli.helpers import assert_one_line, run

QUICK = ("--no-onnx", "--threads", "1", "--seconds", "0")


class TwoInputs(nn.Module):
    """Tokens and a vector in, a vector out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(100, 32), nn.Linear(32, 64)

    def forward(self, tokens: Tensor, more: Tensor) -> Tensor:
        return self.linear(self.table(tokens).mean(1) + more)


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("networks_to_compare")
    module.two_inputs = TwoInputs  # type: ignore[attr-defined]
    module.without_weights = nn.ReLU  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


class TestInputs:
    @given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from(["", "float32", "int64", "bool"]))
    def test_has_the_sizes_and_the_type(self, sizes: list[int], kind: str) -> None:
        found = read_input("x".join(map(str, sizes)) + (f":{kind}" if kind else ""))
        assert list(found.shape) == sizes
        assert found.dtype == getattr(torch, kind or "float32")

    @given(st.text(alphabet="0123456789x:-²٣ a", max_size=8))
    def test_anything_else_is_refused(self, text: str) -> None:
        try:
            sizes = list(read_input(text[:5]).shape)
        except UsageError:
            return
        assert "x".join(str(int(size)) for size in text[:5].split("x")) == "x".join(map(str, sizes))


def test_a_model_of_the_zoo(tmp_path: Path) -> None:
    file = tmp_path / "comparison.md"
    result = run("compare", "zoo:resnet8", "-c", "0.3", "-c", "0.1", *QUICK, "-o", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= max(80, len(f"comparison: {file}"))
    for text in ("30 %", "10 %", "On float32 1x3x32x32, with 1 thread", "Captured: traced", "Recommended: "):
        assert text in result.stdout
    assert "| fxhash 30 % |" in file.read_text()


def test_a_factory_with_several_inputs() -> None:
    result = run(
        *("compare", "networks_to_compare:two_inputs", "--input", "1x7:int64", "--input", "1x32", *QUICK),
        *("--compress", "0.5"),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert "On int64 1x7, float32 1x32" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "line", "status"),
    [
        (
            ["resnet18"],
            "'resnet18' names no model: give torchvision:NAME, timm:NAME, zoo:NAME or package.module:factory",
            2,
        ),
        (
            ["networks_to_compare:two_inputs"],
            "give --input SHAPE, such as --input 1x3x224x224: 'networks_to_compare:two_inputs' doesn't say what it "
            "takes",
            2,
        ),
        (["zoo:resnet8", "--input", "1x"], "--input '1x': give sizes with an x between them, such as 1x3x224x224", 2),
        (
            ["zoo:resnet8", "--input", "1x3:int7"],
            "--input '1x3:int7': 'int7' is no type of an input: give one of float32, int64, bool",
            2,
        ),
        (
            ["zoo:resnet8", "-o", "comparison.pdf"],
            "the file extension of 'comparison.pdf' must be one of .html, .md, .json",
            1,
        ),
    ],
)
def test_mistakes(arguments: list[str], line: str, status: int) -> None:
    assert_one_line(run("compare", *arguments), line, status)


@pytest.mark.parametrize(
    "arguments",
    [
        ["networks_to_compare:without_weights", "--input", "1x8"],
        ["zoo:resnet8", "--input", "1x5x32x32"],
        ["zoo:resnet8", "-c", "0.000001"],
    ],
)
def test_a_target_that_can_not_be_transformed_gives_one_line(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "comparison.md"
    result = run("compare", *arguments, *QUICK, "-o", str(file))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("fxhash: error: ")
    assert result.stderr.count("\n") == 1
    assert not file.exists()


def test_onnx_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxhash.compare.onnx_candidates.onnx_runtime_is_installed", lambda: False)
    line = 'onnxruntime is not installed; to get it: pip install "fxhash[onnx]"'
    assert_one_line(run("compare", "zoo:resnet8", "--onnx"), line, status=2)
