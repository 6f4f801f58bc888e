"""`fxhash demo`: its options and its mistakes."""

import sys
from pathlib import Path

import pytest

from tests.cli.helpers import assert_one_line, run


class TestDemo:
    def test_passes_its_options_on(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        calls: list[tuple[Path, int]] = []
        monkeypatch.setattr("fxhash.demo.demonstration.run_demo", lambda output, epochs: calls.append((output, epochs)))
        assert run("demo").exit_code == 0
        assert run("demo", "--output", str(tmp_path), "--epochs", "2").exit_code == 0
        assert calls == [(Path("fxhash-demo"), 10), (tmp_path, 2)]

    def test_output_that_can_not_be_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        result = run("demo", "--output", str(tmp_path / "file" / "inside"), "--epochs", "1")
        assert result.exit_code == 2
        assert result.stderr.startswith("fxhash: error: the demo can't write its files: ")
        assert "file/inside" in result.stderr
        assert result.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("package", "module", "loaded"),
        [("mlxtend", "mlxtend.data", "mlxtend.data"), ("lightning", "lightning.pytorch", "fxhash.demo.demonstration")],
    )
    def test_without_its_packages(
        self, package: str, module: str, loaded: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delitem(sys.modules, loaded, raising=False)
        monkeypatch.setitem(sys.modules, module, None)
        line = f'{package} is not installed; to get it: pip install "fxhash[demo]"'
        assert_one_line(run("demo", "--output", str(tmp_path / "new")), line, status=2)
        assert not (tmp_path / "new").exists()
