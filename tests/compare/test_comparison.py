"""A comparison of one model: which forms there are, what is counted of them, and what is recommended."""

from __future__ import annotations

import html
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fxhash
from fxhash.compare import comparison as comparing
from fxhash.compare.comparison import compare
from fxhash.compare.documents import forms_table, lines_below, print_comparison, write_comparison
from fxhash.compare.onnx_candidates import write_dense
from fxhash.compare.recommendation import recommend, relative_latency
from fxhash.compare.rows import EAGER, ONNX_RUNTIME, Comparison, OpaquePart, Row
from tests.helpers import skip_unless_onnx_has_batch_norms


class Tiny(nn.Module):
    """A convolution with a batch norm, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.hidden = nn.Linear(16 * 36, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


INPUTS = (torch.rand(1, 3, 8, 8),)
MULTIPLY_ADDS = 36 * 27 * 16 + 16 * 36 * 64 + 64 * 10


class BranchesOnValues(nn.Module):
    """Holds a module that can't be traced."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) if x.sum() > 0 else x

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()
        self.head = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


@pytest.fixture(scope="module")
def eager() -> Comparison:
    return compare(Tiny(), INPUTS, [0.3, 0.1], threads=1, seconds=0, with_onnx=False)


class TestForms:
    def test_in_pytorch_alone(self, eager: Comparison) -> None:
        assert [row.name for row in eager.rows] == ["dense", "int8", "fxhash 30 %", "fxhash 10 %"]
        assert "int8 is torch's own dynamic quantization" in " ".join(eager.notes)
        assert (eager.inputs, eager.threads) == (("float32 1x3x8x8",), 1)
        assert eager.captured == "traced, checked on 1 input"
        assert eager.opaque_parts == ()
        assert {row.runtime for row in eager.rows} == {EAGER}
        assert eager.rows[0].ratio == 1

    def test_a_model_with_parametrizations(self) -> None:
        model = nn.Sequential(weight_norm(nn.Linear(64, 128)), nn.ReLU(), weight_norm(nn.Linear(128, 10)))
        found = compare(model, (torch.rand(1, 64),), [0.5], threads=1, seconds=0, with_onnx=False)
        assert found.rows[0].multiply_adds == 64 * 128 + 128 * 10
        assert {row.name for row in found.rows} >= {"dense", "fxhash 50 %"}

    def test_in_onnx_runtime(self) -> None:
        skip_unless_onnx_has_batch_norms()
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
        steps: list[str] = []
        found = compare(Tiny(), INPUTS, [0.3], threads=1, seconds=0, progress=steps.append)
        assert [row.name for row in found.rows] == [
            *("dense", "dense, ONNX Runtime", "int8, ONNX Runtime", "fxhash 30 %", "fxhash 30 %, ONNX Runtime"),
        ], found.notes
        dense, dense_onnx, int8, small, small_onnx = found.rows
        assert dense_onnx.multiply_adds == dense.multiply_adds
        assert int8.file_bytes["int8"] < 0.5 * dense_onnx.file_bytes["float32"]
        assert small_onnx.file_bytes["float32"] < small.file_bytes["float32"] + 32_768
        assert all(row.resident_bytes for row in found.rows)
        assert int8.resident_bytes < 0.5 * dense_onnx.resident_bytes
        assert "int8 is static quantization by ONNX Runtime" in " ".join(found.notes)
        assert steps[0] == "compressing to 30 %"

    def test_what_can_not_be_exported_is_noted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError("no such\noperator")

        monkeypatch.setattr(comparing, "write_dense", fail)
        monkeypatch.setattr(comparing, "write_compressed", fail)
        found = compare(Tiny(), INPUTS, [0.3], threads=1, seconds=0, with_onnx=True)
        assert [row.name for row in found.rows] == ["dense", "int8", "fxhash 30 %"]
        for form in ("dense", "fxhash 30 %"):
            assert f"{form} in ONNX Runtime was left out: RuntimeError: no such operator." in found.notes

    def test_the_model_and_threads_are_left_as_they_were(self) -> None:
        model = Tiny().train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        threads, state = torch.get_num_threads(), torch.random.get_rng_state()
        compare(model, INPUTS, [0.3], threads=1, seconds=0, with_onnx=False)
        assert model.training
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_what_can_not_be_traced_is_named(self) -> None:
        found = compare(BranchesOnValues(), (torch.rand(1, 64),), [0.3], threads=1, seconds=0, with_onnx=False)
        ((part),) = found.opaque_parts
        assert (part.path, part.share) == ("inner", 0.5)
        assert "50% of the generated weights are in submodules that can't be traced" in found.recommendation
        assert "inner (50.0% of the generated weights): " in " ".join(lines_below(found))


class TestMistakes:
    def test_inputs_that_do_not_fit(self) -> None:
        with pytest.raises(fxhash.TransformError, match=r"Tiny can't be called with float32 1x4: .*Give --input SHAPE"):
            compare(Tiny(), (torch.rand(1, 4),), [0.3])

    @pytest.mark.parametrize("fraction", [0, 2, 1e-6])
    def test_a_size_that_can_not_be_is_found_before_anything_is_timed(
        self, fraction: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(comparing, "measure", lambda *_: pytest.fail("timed"))
        with pytest.raises(fxhash.FxhashError):
            compare(Tiny(), INPUTS, [0.3, fraction], with_onnx=False)


class TestNumbers:
    def test_parameters_and_files(self, eager: Comparison, tmp_path: Path) -> None:
        dense, int8, *small = eager.rows
        model = Tiny()
        assert dense.parameters == int8.parameters == sum(each.numel() for each in model.parameters())
        state = sum(each.nbytes for each in model.state_dict().values())
        assert dense.resident_bytes == state
        assert state < dense.file_bytes["float32"] < state + 2048
        assert dense.file_bytes["bfloat16"] < 0.6 * dense.file_bytes["float32"]
        for row in small:
            gm = fxhash.transform(model, row.compress)
            assert row.parameters == sum(each.numel() for each in gm.parameters())
            fxhash.save(gm, tmp_path / "file.safetensors")
            # The plan has numbers that depend on the initial weights, and not all have as many digits.
            assert row.file_bytes["float32"] == pytest.approx((tmp_path / "file.safetensors").stat().st_size, abs=200)
            assert row.file_bytes["int8"] < row.file_bytes["bfloat16"] < row.file_bytes["float32"]

    def test_resident_bytes_are_stored_tensors_and_scratch(self, eager: Comparison) -> None:
        for row in eager.rows[2:]:
            gm = fxhash.transform(Tiny(), row.compress, seed=0).eval()
            deployed = fxhash.lower_for_deploy(gm)
            stored = sum(each.nbytes for each in (*deployed.parameters(), *deployed.buffers()))
            plan = deployed.smh_factors.plan
            generated = plan.peak_bytes - plan.cached_bytes
            assert generated > 0
            assert row.resident_bytes == stored + generated

    def test_a_dense_onnx_file_has_its_batch_norm_folded(self, tmp_path: Path) -> None:
        skip_unless_onnx_has_batch_norms()
        for package in ("onnxscript", "onnxruntime"):
            pytest.importorskip(package)
        onnx = pytest.importorskip("onnx")
        write_dense(Tiny().eval(), INPUTS, tmp_path / "dense.onnx")
        operators = [node.op_type for node in onnx.load(tmp_path / "dense.onnx").graph.node]
        assert "Conv" in operators
        assert "BatchNormalization" not in operators

    def test_multiply_adds(self, eager: Comparison) -> None:
        dense, _, *small = eager.rows
        assert dense.multiply_adds == MULTIPLY_ADDS
        assert all(row.multiply_adds for row in small)


def row(method: str, runtime: str, compress: float | None, files: dict[str, int], ratio: float) -> Row:
    return Row(method, runtime, compress, 1000, files, 10, 10, 2 * ratio, ratio)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Row, ...]:
    size, ratio = st.integers(100, 10**9), st.floats(0.01, 100)
    rows = [row("dense", EAGER, None, {"float32": draw(size), "bfloat16": draw(size)}, 1.0)]
    if draw(st.booleans()):
        rows.append(row("dense", ONNX_RUNTIME, None, {"float32": draw(size)}, draw(ratio)))
    if draw(st.booleans()):
        rows.append(row("int8", draw(st.sampled_from([EAGER, ONNX_RUNTIME])), None, {"int8": draw(size)}, draw(ratio)))
    for compress in draw(st.lists(st.floats(0.001, 1), min_size=1, max_size=3, unique=True)):
        files = {"float32": draw(size), "bfloat16": draw(size), "int8": draw(size)}
        rows.append(row("fxhash", EAGER, compress, files, draw(ratio)))
        if draw(st.booleans()):
            rows.append(row("fxhash", ONNX_RUNTIME, compress, {"float32": draw(size)}, draw(ratio)))
    return tuple(rows)


class TestRecommendation:
    @given(tables(), st.booleans())
    def test_warns_exactly_if_every_size_is_slower(self, rows: tuple[Row, ...], is_separable: bool) -> None:
        text = recommend(rows, (), is_separable)
        slower = all(relative_latency(each, rows) > 1.05 for each in rows if each.method == "fxhash")
        assert ("Warning: every compressed form is slower" in text) == slower
        assert ("separable=False" in text) == (slower and is_separable)
        assert ("int8" in text) or all(each.method != "int8" for each in rows)

    def test_the_largest_size_that_is_fast_enough(self) -> None:
        files = {"float32": 200, "bfloat16": 100, "int8": 50}
        rows = (
            row("dense", EAGER, None, {"float32": 4000}, 1.0),
            row("int8", EAGER, None, {"int8": 1000}, 0.5),
            row("fxhash", EAGER, 0.5, files, 1.5),
            row("fxhash", EAGER, 0.1, files, 0.9),
            row("fxhash", EAGER, 0.02, files, 0.8),
        )
        assert recommend(rows, (), True) == (
            "If 4.0 times fewer bytes are enough, take int8, which needs no training and here takes 0.50 times the "
            "dense latency (eager). For less, train with compress=0.1: 20.0 times fewer bytes than float32, 80.0 times "
            "with factors stored in 8 bits, at 0.90 times the dense latency (eager)."
        )

    def test_a_smaller_dense_network_is_named_where_it_may_be_as_accurate(self) -> None:
        files = {"float32": 200, "bfloat16": 100, "int8": 50}
        dense, small = row("dense", EAGER, None, {"float32": 4000}, 1.0), row("fxhash", EAGER, 0.1, files, 0.9)
        assert "smaller dense network" not in recommend((dense, small), (), True)
        large = replace(small, parameters=40_000)
        expected = "With as many as 40,000 trained parameters, a smaller dense network may be as accurate"
        assert expected in recommend((dense, large), (), True)

    def test_a_latency_is_compared_with_dense_in_the_same_runtime(self) -> None:
        files = {"float32": 200, "bfloat16": 100, "int8": 50}
        rows = (
            row("dense", EAGER, None, {"float32": 4000}, 1.0),
            row("dense", ONNX_RUNTIME, None, {"float32": 4000}, 0.1),
            row("fxhash", EAGER, 0.1, files, 1.2),
            row("fxhash", ONNX_RUNTIME, 0.1, {"float32": 300}, 0.2),
        )
        assert [relative_latency(each, rows) for each in rows] == [1, 1, 1.2, 2]
        assert "Warning" in recommend(rows, (), False)

    def test_int8_that_is_as_small(self) -> None:
        files = {"float32": 2000, "bfloat16": 1500, "int8": 1100}
        rows = (
            row("dense", EAGER, None, {"float32": 4000}, 1.0),
            row("int8", EAGER, None, {"int8": 1000}, 0.5),
            row("fxhash", EAGER, 0.5, files, 0.9),
        )
        assert "fxhash with compress=0.5 is no smaller than that" in recommend(rows, (), False)

    def test_int8_that_saves_nothing(self) -> None:
        files = {"float32": 2000, "bfloat16": 1500, "int8": 1100}
        rows = (
            row("dense", EAGER, None, {"float32": 4000}, 1.0),
            row("int8", EAGER, None, {"int8": 4000}, 1.0),
            row("fxhash", EAGER, 0.5, files, 0.9),
        )
        assert recommend(rows, (), False).startswith("int8 saves next to nothing here")


def printed(rows: tuple[Row, ...], width: int) -> list[str]:
    """The lines of the table in a terminal of some width, without what stands below."""
    file = io.StringIO()
    comparison = Comparison("net", ("float32 1x3",), 1, "machine", rows, "traced", (), (), "take it")
    print_comparison(comparison, Console(file=file, width=width))
    return file.getvalue().splitlines()[: len(rows) + 3]


class TestDocuments:
    @given(tables(), st.integers(1, 10**13), st.integers(20, 200))
    def test_the_terminal_table_cuts_nothing_off(self, rows: tuple[Row, ...], parameters: int, width: int) -> None:
        rows = tuple(replace(each, parameters=parameters) for each in rows)
        for each, line in zip(rows, printed(rows, width)[3:], strict=True):
            assert line.startswith(each.short_name)
            for number in (f"{parameters:,}", f"{each.milliseconds:,.2f}", f"{each.ratio:.2f}"):
                assert number in line

    @given(st.sampled_from([0.5, 0.1, 0.02, 0.005]), st.integers(1, 99_999_999))
    def test_the_terminal_table_fits_80_columns(self, compress: float, parameters: int) -> None:
        files = {"float32": 4 * parameters, "bfloat16": 2 * parameters, "int8": parameters}
        forms = [("dense", EAGER, None), ("int8", ONNX_RUNTIME, None), ("fxhash", ONNX_RUNTIME, compress)]
        rows = tuple(Row(*form, parameters, files, 100 * parameters, 4 * parameters, 999.99, 9.99) for form in forms)
        assert max(map(len, printed(rows, 80))) <= 80

    def test_each_kind_of_file(self, eager: Comparison, tmp_path: Path) -> None:
        part = OpaquePart("a.b", "it has <hooks> | *so*", 0.25)
        comparison = replace(eager, target="pkg:<net>", opaque_parts=(part,))
        for name in ("c.html", "c.md", "c.json"):
            write_comparison(comparison, tmp_path / name)
        page, text = (tmp_path / "c.html").read_text(), (tmp_path / "c.md").read_text()
        assert "<h1>pkg:&lt;net&gt;, dense and compressed</h1>" in page
        for line in lines_below(comparison):
            assert f"<p>{html.escape(line)}</p>" in page
        cells = forms_table(comparison).rows[2]
        assert "".join(f"<td>{cell}</td>" for cell in cells) in page
        assert f"| {' | '.join(cells)} |" in text
        assert r"it has &lt;hooks&gt; \| \*so\*" in text
        stored = json.loads((tmp_path / "c.json").read_text())
        assert [each["compress"] for each in stored["rows"]] == [None, None, 0.3, 0.1]
        assert stored["recommendation"] == comparison.recommendation
        assert sorted(path.name for path in tmp_path.iterdir()) == ["c.html", "c.json", "c.md"]

    def test_a_folder_that_is_not_there(self, eager: Comparison, tmp_path: Path) -> None:
        with pytest.raises(fxhash.CheckpointError, match="can't be written"):
            write_comparison(eager, tmp_path / "none" / "c.md")
