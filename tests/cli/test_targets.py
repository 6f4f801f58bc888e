"""Targets: models of torchvision, of the zoo and of a factory, and mistakes in naming them."""

import sys
from pathlib import Path

import pytest
import torch

from fxhash import zoo
from tests.cli.helpers import assert_one_line, run, run_process

TARGETS = "torchvision:NAME, timm:NAME, zoo:NAME or package.module:factory"
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


class TestTargets:
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

    def test_models_that_compute_their_widths_with_tensors(self) -> None:
        assert run("inspect", "torchvision:regnet_x_400mf").exit_code == 0


class TestMistakes:
    @pytest.mark.parametrize("target", ["resnet18", "zoo:", ":model", "model.pt"])
    def test_target_of_no_known_form(self, target: str) -> None:
        assert_one_line(run("inspect", target), f"{target!r} names no model: give {TARGETS}", status=2)

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

    def test_process_prints_no_traceback(self, factories: str, tmp_path: Path) -> None:
        process = run_process("inspect", f"{factories}:fails", cwd=tmp_path)
        assert process.returncode == 2
        assert process.stdout == ""
        assert process.stderr == (
            f"fxhash: error: calling '{factories}:fails' without arguments failed: RuntimeError: the disk is on fire\n"
        )
