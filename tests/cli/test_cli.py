"""The `fxhash` command: what it prints, and that every mistake ends in one line and a non-zero status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.testing

import fxhash
from fxhash import cli, zoo
from fxhash.storage.checkpoint import read_plan
from fxhash.version import __version__

TARGETS = "torchvision:NAME, zoo:NAME, package.module:factory or the path of a .safetensors file"
# A module with factories that work and factories that don't.
FACTORIES = """
from torch import nn

class Net:
    build = staticmethod(lambda: nn.Linear(64, 64))

def model():
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))

def returns_a_number():
    return 1

def needs_an_argument(width):
    return nn.Linear(width, width)

def fails():
    raise RuntimeError("the disk\\nis on fire")

def fails_in_silence():
    raise KeyError

not_callable = 3
"""


def run(*arguments: str) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(cli.create_app(), arguments, catch_exceptions=False)


def run_process(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    source = str(Path(fxhash.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "fxhash", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(result: typer.testing.Result, line: str, status: int) -> None:
    assert result.stdout == ""
    assert result.stderr == f"fxhash: error: {line}\n"
    assert result.exit_code == status


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory that holds the factories above."""
    (tmp_path / "demo_factories.py").write_text(FACTORIES)
    (tmp_path / "broken_factories.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in ("demo_factories", "broken_factories"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return "demo_factories"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    fxhash.save(fxhash.transform(zoo.create("resnet8"), compress=0.25), path)
    return path


class TestHelp:
    def test_lists_the_commands(self) -> None:
        result = run("--help")
        assert result.exit_code == 0
        assert "Shrink any PyTorch model to a chosen size" in result.stdout
        assert "demo     Train, deploy and compare small networks." in result.stdout
        assert "inspect  Show a model's parameters once compressed." in result.stdout

    def test_version(self) -> None:
        result = run("--version")
        assert (result.exit_code, result.stdout) == (0, f"fxhash {__version__}\n")

    def test_module_runs_as_a_command(self) -> None:
        process = run_process("--version")
        assert (process.returncode, process.stdout, process.stderr) == (0, f"fxhash {__version__}\n", "")

    def test_help_loads_nothing_heavy(self) -> None:
        script = (
            "import sys; from fxhash import cli; from typer.testing import CliRunner; "
            "assert CliRunner().invoke(cli.create_app(), ['inspect', '--help']).exit_code == 0; "
            "print({'torchvision', 'matplotlib', 'sklearn', 'fxhash.training.demo'} & set(sys.modules))"
        )
        process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert (process.stdout, process.stderr) == ("set()\n", "")


class TestInspectModel:
    def test_zoo(self) -> None:
        result = run("inspect", "zoo:resnet20")
        assert result.exit_code == 0
        assert result.stderr == ""
        assert "stage1.0.conv1.weight" in result.stdout
        assert "269,722" in result.stdout

    def test_torchvision(self) -> None:
        pytest.importorskip("torchvision")
        result = run("inspect", "torchvision:resnet18", "--compress", "0.05")
        assert result.exit_code == 0
        assert result.stderr == ""
        assert "layer4.1.conv2.weight" in result.stdout
        assert "11,689,512" in result.stdout

    def test_torchvision_builds_no_trained_backbone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        models = pytest.importorskip("torchvision.models")
        built: list[dict[str, None]] = []

        def get_model(name: str, **arguments: None) -> torch.nn.Module:
            built.append(arguments)
            return torch.nn.Linear(64, 64)

        monkeypatch.setattr(models, "get_model", get_model)
        assert run("inspect", "torchvision:resnet18").exit_code == 0
        assert run("inspect", "torchvision:fcn_resnet50").exit_code == 0
        assert built == [{"weights": None}, {"weights": None, "weights_backbone": None}]

    def test_factory_in_the_working_directory(self, factories: str) -> None:
        result = run("inspect", f"{factories}:model")
        assert result.exit_code == 0
        assert result.stderr == ""
        assert "8,320" in result.stdout
        assert run("inspect", f"{factories}:Net.build").exit_code == 0

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


class TestInspectFile:
    def test_prints_the_plan(self, saved: Path) -> None:
        result = run("inspect", str(saved))
        assert result.exit_code == 0
        assert result.stdout == f"{read_plan(saved)}\n"
        assert "stage1.0.conv1.weight" in result.stdout

    def test_refuses_options_that_a_file_has_settled(self, saved: Path) -> None:
        result = run("inspect", str(saved), "--compress", "0.5", "--exclude", "fc")
        line = f"--compress, --exclude: a saved file has its plan already; leave this out for {str(saved)!r}"
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


class TestInspectErrors:
    @pytest.mark.parametrize("target", ["resnet18", "zoo:", ":model", "model.pt"])
    def test_target_of_no_known_form(self, target: str) -> None:
        assert_one_line(run("inspect", target), f"can't inspect {target!r}: expected {TARGETS}", status=2)

    def test_unknown_zoo_model(self) -> None:
        with pytest.raises(zoo.UnknownModelError) as caught:
            zoo.create("resnet21")
        assert_one_line(run("inspect", "zoo:resnet21"), str(caught.value), status=1)

    def test_unknown_torchvision_model(self) -> None:
        pytest.importorskip("torchvision")
        line = "torchvision has no model 'resnet19' (did you mean resnet18 or resnet152 or resnet101?)"
        assert_one_line(run("inspect", "torchvision:resnet19"), line, status=2)

    def test_torchvision_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchvision.models", None)
        line = 'torchvision is not installed; to get it: pip install "fxhash[zoo]"'
        assert_one_line(run("inspect", "torchvision:resnet18"), line, status=2)

    @pytest.mark.parametrize(
        ("target", "line"),
        [
            (
                "no_such_package.nets:build",
                "can't import 'no_such_package.nets': ModuleNotFoundError: No module named 'no_such_package'",
            ),
            (
                "broken_factories:build",
                "can't import 'broken_factories': ZeroDivisionError: division by zero",
            ),
            (
                "demo_factories:modle",
                "can't find 'demo_factories:modle': module 'demo_factories' has no attribute 'modle'",
            ),
            (
                "demo_factories:fails",
                "calling 'demo_factories:fails' without arguments failed: RuntimeError: the disk is on fire",
            ),
            (
                "demo_factories:fails_in_silence",
                "calling 'demo_factories:fails_in_silence' without arguments failed: KeyError",
            ),
            (
                "demo_factories:needs_an_argument",
                "calling 'demo_factories:needs_an_argument' without arguments failed: TypeError: "
                "needs_an_argument() missing 1 required positional argument: 'width'",
            ),
            (
                "demo_factories:not_callable",
                "calling 'demo_factories:not_callable' without arguments failed: TypeError: "
                "'int' object is not callable",
            ),
            (
                "demo_factories:returns_a_number",
                "'demo_factories:returns_a_number' returned int, expected a torch.nn.Module",
            ),
        ],
    )
    @pytest.mark.usefixtures("factories")
    def test_factories_that_do_not_work(self, target: str, line: str) -> None:
        assert_one_line(run("inspect", target), line, status=2)

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

    def test_models_that_compute_their_widths_with_tensors(self) -> None:
        assert run("inspect", "torchvision:regnet_x_400mf").exit_code == 0

    def test_process_prints_no_traceback(self, factories: str, tmp_path: Path) -> None:
        process = run_process("inspect", f"{factories}:fails", cwd=tmp_path)
        assert process.returncode == 2
        assert process.stdout == ""
        assert process.stderr == (
            f"fxhash: error: calling '{factories}:fails' without arguments failed: RuntimeError: the disk is on fire\n"
        )


class TestUsageErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["inspect"], "Missing argument 'TARGET'."),
            (["inspect", "zoo:resnet8", "--compress", "much"], "Invalid value for '--compress'"),
            (["demo", "--epochs", "0"], "Invalid value for '--epochs'"),
            (["squeeze"], "No such command 'squeeze'."),
        ],
    )
    def test_ends_in_one_line(self, arguments: list[str], message: str) -> None:
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith(f"Error: {message}")
        assert "Traceback" not in result.stderr


class TestMissingExtras:
    @pytest.mark.parametrize("package", ["typer", "rich"])
    def test_command_itself(
        self, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        assert capsys.readouterr().err == (
            f'fxhash: error: {package} is not installed; to get it: pip install "fxhash[cli]"\n'
        )

    def test_demo(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delitem(sys.modules, "fxhash.training.demo", raising=False)
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        line = 'sklearn is not installed; to get it: pip install "fxhash[train]"'
        assert_one_line(run("demo", "--output", str(tmp_path)), line, status=2)


class TestDemo:
    def test_passes_its_options_on(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        calls: list[tuple[Path, int]] = []
        monkeypatch.setattr("fxhash.training.demo.run_demo", lambda output, epochs: calls.append((output, epochs)))
        assert run("demo").exit_code == 0
        assert run("demo", "--output", str(tmp_path), "--epochs", "2").exit_code == 0
        assert calls == [(Path("fxhash-demo"), 30), (tmp_path, 2)]

    def test_output_that_can_not_be_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        result = run("demo", "--output", str(tmp_path / "file" / "inside"), "--epochs", "1")
        assert result.exit_code == 2
        assert result.stderr.startswith("fxhash: error: the demo can't write its files: ")
        assert "file/inside" in result.stderr
        assert result.stderr.count("\n") == 1
