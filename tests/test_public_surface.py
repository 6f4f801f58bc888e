"""What is exported, what an import loads, and which way imports point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fxhash

PACKAGE = Path(fxhash.__file__).parent
# Each may import those before it, and modules of its own group.
ORDER = [
    {"version"},
    {"errors", "files", "narrowing"},
    {"product"},
    {"layout"},
    {"plan"},
    {"selection"},
    {"factored", "factored_weight", "dataflow", "costs"},
    {"copying", "deployment", "deployed", "generator", "initial", "lowered_layers", "parts"},
    {"exported", "tracing", "passes"},
    {"api"},
    {"checkpoint", "onnx_file", "report"},
    {"latency", "zoo"},
    {"demo", "training"},
    {"cli"},
    {"__main__"},
]


def test_exported_names():
    exported = {
        name for name, value in vars(fxhash).items() if not name.startswith("_") and not isinstance(value, type(sys))
    }
    assert exported | {"__version__"} == set(fxhash.__all__)
    assert fxhash.__all__ == sorted(fxhash.__all__)


def test_import_is_light():
    code = (
        "import sys, fxhash; heavy = {'torchvision', 'matplotlib', 'sklearn', 'typer', 'rich', 'fxhash.zoo', "
        "'fxhash.demo', 'fxhash.cli', 'torch._dynamo'} & set(sys.modules); print(sorted(heavy)); sys.exit(bool(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def imported_modules(file: Path) -> set[str]:
    """Top-level modules of fxhash that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("fxhash.")}
        if isinstance(node, ast.ImportFrom) and node.module == "fxhash":
            found |= {alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()}
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    relative = file.relative_to(PACKAGE)
    name = relative.parts[0].removesuffix(".py")
    if name == "__init__":
        return
    (level,) = [index for index, group in enumerate(ORDER) if name in group]
    allowed = set().union(*ORDER[: level + 1])
    assert imported_modules(file) <= allowed
