"""Every command and every Python block of the README and the pages of `docs/`.

Python blocks are run as printed, those of a page one after the other. Commands of `fxhash` are parsed by the command's
own parser, and run in a slow test, with fewer epochs. `COVERED` names what runs every other command.
"""

from __future__ import annotations

import linecache
import re
import shlex
from functools import wraps
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("lightning")

from tests.cli.helpers import run, run_process
from tests.training.tiny import write_images

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}

# Commands that are not of fxhash, and what runs them.
COVERED = {
    "make demo": "tests/demo/test_demonstration.py",
    "make docs": "tests/test_site.py",
    "make test": ".ci/run",
    "make test-all": "Makefile",
    "make test-ecosystem": "Makefile",
    'pip install torch torchvision -e "path/to/fxhash[all]"': "Makefile",
    'pip install "fxhash[zoo]"': "Makefile",
    "npm install onnxruntime-web@1.30.0": "web/package.json",
    "python -m http.server --directory page": "tests/training/site/test_page.py",
    "python benchmarks/accuracy_table.py FILE": "tests/test_benchmarks.py",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines of blocks for a shell, without their comments."""
    lines = [re.split(r"\s#", line)[0].strip() for block in blocks(text, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


def mentions(text: str) -> list[str]:
    """Commands in the text."""
    without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"(?<!`)`((?:fxhash|make|pip|python) [^`]+)`", without_blocks)


def test_there_are_commands_to_test() -> None:
    assert len(commands(DOCUMENTS["README.md"])) > 8
    assert any("fxhash export" in mention for mention in mentions(DOCUMENTS["docs/guide/exporting.md"]))
    assert sum(len(blocks(text, "python")) for text in DOCUMENTS.values()) > 10
    assert not [name for name, text in DOCUMENTS.items() if "```console" in text or "```bash" in text]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_fit_a_page_of_1200_pixels(document: str) -> None:
    for language in ("python", "sh", "text"):
        for block in blocks(DOCUMENTS[document], language):
            assert max(map(len, block.splitlines())) <= 103


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands read their arguments and do nothing."""
    monkeypatch.setattr("fxhash.cli.app.one_line_errors", lambda: lambda command: wraps(command)(lambda **_: None))


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_are_those_that_exist(document: str) -> None:
    in_blocks = commands(DOCUMENTS[document])
    for command in [*in_blocks, *mentions(DOCUMENTS[document])]:
        program, *arguments = shlex.split(command, comments=True)
        if program != "fxhash":
            assert (ROOT / COVERED[command]).exists()
            continue
        result = run(*arguments)
        # Text may speak of a command without giving all that it needs.
        missing = "Missing argument" in result.stderr and command not in in_blocks
        assert result.exit_code == 0 or missing, f"{command}: {result.stderr}"


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("wrong", ["fly", "train --wings 2", "train --epochs many", "report -o page.html"])
def test_the_parser_refuses_what_there_is_not(wrong: str) -> None:
    assert run(*wrong.split()).exit_code == 2


@pytest.mark.parametrize("target", sorted({rule for rule in COVERED if rule.startswith("make ")}))
def test_makefile_has_the_targets(target: str) -> None:
    assert re.search(rf"^{target.split()[1]}[: ]", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_extras_that_are_named_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for text in DOCUMENTS.values():
        for extras in re.findall(r"fxhash\[([\w,]+)\]", text):
            assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))


# Lightning gives advice on loaders and devices.
@pytest.mark.filterwarnings("ignore:::lightning")
@pytest.mark.parametrize("document", [name for name, text in DOCUMENTS.items() if blocks(text, "python")])
def test_python_runs_as_printed(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A block of text that follows is what it prints."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "documented"}
    parts = re.split(r"^```(\w*)\n(.*?)^```$", DOCUMENTS[document], flags=re.MULTILINE | re.DOTALL)
    printed = ""
    for index, (language, block) in enumerate(zip(parts[1::3], parts[2::3], strict=True)):
        if language == "python":
            # Where functions read their own source, they find it.
            file = f"{document}:{index}"
            linecache.cache[file] = (len(block), None, block.splitlines(keepends=True), file)
            exec(compile(block, file, "exec"), namespace)
            printed = capsys.readouterr().out
        elif language == "text":
            assert printed == block


# What makes the commands quick: arguments that are replaced, and options that are added to those of a command.
REPLACED = {"imagefolder:DIR": "imagefolder:images", "--epochs 60": "--epochs 2"}
ADDED = {
    "train": ["--epochs", "1", "--device", "cpu"],
    "compare": ["--seconds", "0", "--threads", "1", "--no-onnx"],
    "bench": ["--batch", "1"],
}


def quick(command: str) -> list[str]:
    for printed, replacement in REPLACED.items():
        command = command.replace(printed, replacement)
    _, *arguments = shlex.split(command)
    return [*arguments, *([] if "--resume" in arguments else ADDED.get(arguments[0], []))]


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name, text in DOCUMENTS.items() if "fxhash" in "".join(commands(text))])
def test_commands_run(document: str, tmp_path: Path) -> None:
    """One after the other in one folder, as printed but for REPLACED and ADDED, with eight images in DIR."""
    for package in ("torchvision", "onnxruntime", "sklearn"):
        pytest.importorskip(package)
    write_images(tmp_path / "images")
    # As npm would install it; a browser would notice.
    runtime = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    runtime.mkdir(parents=True)
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (runtime / name).touch()
    for command in commands(DOCUMENTS[document]):
        if command.startswith("fxhash "):
            if command.endswith("--resume"):
                # As if the run before had been killed when all but its result was written.
                (tmp_path / command.split()[3] / "result.json").unlink()
            result = run_process(*quick(command), cwd=tmp_path)
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
