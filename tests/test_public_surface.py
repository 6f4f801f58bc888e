"""What is exported, what an import loads, and which way imports point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

import fxhash

PACKAGE = Path(fxhash.__file__).parent
# Folders and files of the package, in the order of imports: each may import from those before it.
ORDER = [
    "version",
    "errors",
    "printable",
    "tables",
    "trust",
    "progress",
    "graph",
    "smh",
    "capture",
    "lowering",
    "passes",
    "original",
    "transformed",
    "deploy_form",
    "initial_factors",
    "train_form",
    "quantized_form",
    "opaque_parts",
    "api",
    "summary",
    "storage",
    "recovery",
    "zoo",
    "targets",
    "training",
    "compare",
    "demo",
    "cli",
    "__main__",
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
        "'fxhash.training', 'fxhash.cli', 'torch._dynamo'} & set(sys.modules); print(sorted(heavy)); "
        "sys.exit(bool(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def modules() -> dict[str, Path]:
    """The files of the package by their names, such as `graph.names`; a folder's `__init__` has the folder's name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imported_modules(file: Path) -> set[str]:
    """Modules of fxhash that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in below if name.removeprefix("fxhash.") in MODULES}
            found |= known | ({node.module} if below - known else set())
    return {name.removeprefix("fxhash.") for name in found if name.startswith("fxhash.")}


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_point_one_way_between_folders(name):
    folder, *_ = name.split(".")
    allowed = ORDER[: ORDER.index(folder) + 1]
    assert {imported.split(".")[0] for imported in imported_modules(MODULES[name])} <= set(allowed)


def test_no_circles_inside_of_folders():
    imports = nx.DiGraph((name, imported) for name in MODULES for imported in imported_modules(MODULES[name]))
    # A folder's `__init__` gathers what its files offer; none of them imports it.
    assert [sorted(circle) for circle in nx.strongly_connected_components(imports) if len(circle) > 1] == []
    assert not list(nx.selfloop_edges(imports))
