"""A run as a page: what is written, where, and what is refused; `tests/browser` looks at it in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fxhash.errors import CheckpointError, TrainingError
from tests.cli.helpers import assert_one_line
from tests.cli.helpers import run as run_command
from tests.helpers import skip_unless_onnx_has_open_sizes

pytest.importorskip("lightning")

from fxhash import training
from fxhash.training import RunOptions, export_site, load_recipe
from fxhash.training.site import page, runtime
from tests.training.tiny import tiny_options, train, write_images

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "fxhash" / "training" / "site"
WASM = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU = ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*"),
]


def installed(project: Path, names: tuple[str, ...] = WASM) -> Path:
    """A project in which npm installed some files of the package; gives their folder."""
    dist = project / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    for name in names:
        (dist / name).write_text(f"the file {name}")
    (dist.parent / "package.json").write_text('{"version": "1.2.3"}')
    return dist


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = load_recipe("digits").with_changes({"epochs": 1})
    options = RunOptions("resnet8", "digits", recipe, 0.3, device="cpu", model_options={"width": 4})
    training.train(options, folder, console=Console(quiet=True))
    return folder


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter takes seconds, and what it writes is of no interest."""

    def write(folder: Path, path: Path, dtype: object) -> None:
        path.write_text(f"a model of {dtype}")

    monkeypatch.setattr(page, "export", write)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_model_of_a_page_is_the_exported_one(finished: Path, tmp_path: Path) -> None:
    skip_unless_onnx_has_open_sizes()
    export_site(finished, tmp_path / "page", runtime=installed(tmp_path))
    training.export(finished, tmp_path / "model.onnx")
    assert (tmp_path / "page" / "model.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


@pytest.mark.usefixtures("quick_export")
def test_a_page_has_all_that_it_needs(finished: Path, tmp_path: Path) -> None:
    dist = installed(tmp_path)
    target = tmp_path / "page"
    export_site(finished, target, runtime=dist)
    assert (target / "model.onnx").read_text() == "a model of None"
    sources = {path.name for path in SOURCES.iterdir() if path.suffix in (".html", ".css", ".js")}
    assert files(target) == {*sources, "model.json", "model.onnx", *(f"runtime/{name}" for name in WASM)}
    description = json.loads((target / "model.json").read_text())
    configuration = json.loads((finished / "run.json").read_text())
    for name in ("classes", "channels", "size", "mean", "std"):
        assert description[name] == configuration[name]
    assert description["network"] == "resnet8, width 4"
    assert description["runtime"] == {
        "version": "1.2.3",
        "module": f"runtime/{WASM[0]}",
        "binary": f"runtime/{WASM[1]}",
        "webgpu": False,
    }
    assert (target / description["runtime"]["module"]).read_text() == f"the file {WASM[0]}"
    assert description["bytes"] == {name: (target / name).stat().st_size for name in files(target) - {"model.json"}}
    assert description["drawing"] == {"size": 1.0, "line": 0.15}


@pytest.mark.usefixtures("quick_export")
def test_a_page_of_pictures_on_the_gpu(tmp_path: Path) -> None:
    """Nobody draws a picture of three colours; the path of the images is in no file."""
    pytest.importorskip("torchvision")
    train(tiny_options(write_images(tmp_path / "images"), None), tmp_path / "run")
    export_site(tmp_path / "run", tmp_path / "page", runtime=installed(tmp_path, WEBGPU), webgpu=True)
    text = (tmp_path / "page" / "model.json").read_text()
    assert json.loads(text)["drawing"] is None
    assert json.loads(text)["runtime"]["webgpu"] is True
    assert {f"runtime/{name}" for name in WEBGPU} < files(tmp_path / "page")
    assert str(tmp_path) not in text


def test_bits_on_the_gpu(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That build widens int8, but neither bfloat16 nor int4."""
    onnx = pytest.importorskip("onnx")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    steps = np.array([[0.5], [3.0]], dtype=ml_dtypes.bfloat16)
    tensors = [onnx.numpy_helper.from_array(values, "x") for values in (steps, np.array([[-3], [4]], dtype=np.int8))]

    def write(folder: Path, path: Path, dtype: object) -> None:
        graph = onnx.helper.make_graph([], "graph", [], [], tensors)
        path.write_bytes(onnx.helper.make_model(graph).SerializeToString())

    monkeypatch.setattr(page, "export", write)
    dist = installed(tmp_path, WEBGPU)
    export_site(finished, tmp_path / "page", "int8", runtime=dist, webgpu=True)
    stored = onnx.load(tmp_path / "page" / "model.onnx").graph.initializer
    assert [tensor.data_type for tensor in stored] == [onnx.TensorProto.FLOAT, onnx.TensorProto.INT8]
    assert onnx.numpy_helper.to_array(stored[0]).tolist() == [[0.5], [3.0]]
    assert stored[1] == tensors[1]
    with pytest.raises(TrainingError, match=r"can't read int4: give dtype='int8', or omit webgpu=\.\.\."):
        export_site(finished, tmp_path / "other", "int4", runtime=dist, webgpu=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("quick_export")
class TestFolders:
    def test_a_page_is_replaced(self, finished: Path, tmp_path: Path) -> None:
        dist, target = installed(tmp_path), tmp_path / "page"
        target.mkdir()
        export_site(finished, target, runtime=dist)
        before = files(target)
        export_site(finished, target, "int4", runtime=dist)
        assert files(target) == before
        assert (target / "model.onnx").read_text() == "a model of int4"
        assert {path.name for path in tmp_path.iterdir()} == {"page", "node_modules"}

    @pytest.mark.parametrize("name", ["notes.txt", ".git/config", "model.json"])
    @pytest.mark.parametrize("in_page", [True, False])
    def test_what_is_no_page_is_left_alone(self, finished: Path, tmp_path: Path, name: str, in_page: bool) -> None:
        dist, target = installed(tmp_path), tmp_path / "page"
        if in_page:
            export_site(finished, target, runtime=dist)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text('{"kind": "something else"}')
        before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
        other = "drawing.js" if in_page and name == "model.json" else name
        with pytest.raises(TrainingError, match=rf"page' holds '{re.escape(other)}', which is not of a page"):
            export_site(finished, target, runtime=dist)
        assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before

    def test_a_file_is_no_folder(self, finished: Path, tmp_path: Path) -> None:
        (tmp_path / "page").touch()
        with pytest.raises(TrainingError, match="page' is a file: give a folder for the page"):
            export_site(finished, tmp_path / "page", runtime=installed(tmp_path))

    def test_a_disk_that_fails_leaves_the_page_as_it_was(
        self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dist, target = installed(tmp_path), tmp_path / "page"
        export_site(finished, target, runtime=dist)

        def fail(source: Path, place: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfile", fail)
        with pytest.raises(CheckpointError, match=r"page can't be written: .*No space left"):
            export_site(finished, target, "int8", runtime=dist)
        assert (target / "model.onnx").read_text() == "a model of None"
        assert {path.name for path in tmp_path.iterdir()} == {"page", "node_modules"}

    def test_a_folder_in_one_that_is_not_there(self, finished: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="can't be written"):
            export_site(finished, tmp_path / "nowhere" / "page", runtime=installed(tmp_path))
        assert not (tmp_path / "nowhere").exists()

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="there is no run"):
            export_site(tmp_path / "run", tmp_path / "page", runtime=installed(tmp_path))
        assert not (tmp_path / "page").exists()

    def test_images_of_two_channels(self, finished: Path, tmp_path: Path) -> None:
        run = shutil.copytree(finished, tmp_path / "run")
        values = json.loads((run / "run.json").read_text())
        del values["sha256"]
        (run / "run.json").write_text(json.dumps({**values, "channels": 2}))
        with pytest.raises(TrainingError, match=r"on images of 2 channels: a page takes pictures, which have 1 or 3"):
            export_site(run, tmp_path / "page", runtime=installed(tmp_path))


class TestRuntime:
    def test_is_found_above_the_working_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dist = installed(tmp_path)
        (tmp_path / "below" / "further").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "below" / "further")
        assert runtime.find_runtime() == runtime.Runtime(dist, *WASM, "1.2.3")

    def test_is_found_by_each_folder_that_may_be_meant(self, tmp_path: Path) -> None:
        dist = installed(tmp_path)
        (dist.parent / "package.json").write_text("no JSON")
        for folder in (tmp_path, dist.parent, dist):
            assert runtime.find_runtime(folder) == runtime.Runtime(dist, *WASM, None)

    def test_what_to_do_without_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        needed = "a page needs {} and {} of the npm package onnxruntime-web, and "
        to_do = ": run npm install onnxruntime-web@1.30.0 here, or give the folder it was run in as runtime=..."
        with pytest.raises(TrainingError) as caught:
            runtime.find_runtime()
        assert str(caught.value) == f"{needed.format(*WASM)}no folder here or above has them{to_do}"
        installed(tmp_path / "other")
        with pytest.raises(TrainingError) as caught:
            runtime.find_runtime("other", webgpu=True)
        assert str(caught.value) == f"{needed.format(*WEBGPU)}runtime='other' has none{to_do}"

    def test_is_the_version_that_is_tested(self) -> None:
        """And npm's lock file names no server, so that each takes its own."""
        package, lock = (json.loads((ROOT / "web" / f"package{end}.json").read_text()) for end in ("", "-lock"))
        assert package["dependencies"] == {runtime.PACKAGE: runtime.VERSION}
        assert lock["packages"][f"node_modules/{runtime.PACKAGE}"]["version"] == runtime.VERSION
        assert not [name for name, values in lock["packages"].items() if "resolved" in values]


@pytest.mark.usefixtures("quick_export")
class TestCommand:
    def test_a_folder_is_a_page(self, finished: Path, tmp_path: Path) -> None:
        installed(tmp_path)
        for target in (f"{tmp_path}/page/", f"{tmp_path}/page"):
            result = run_command("export", str(finished), target, "--runtime", str(tmp_path))
            assert result.exit_code == 0, result.stderr
            written = [path.stat().st_size for path in (tmp_path / "page").rglob("*") if path.is_file()]
            assert f"{target}: {sum(written):,} bytes, 15 of them the model" in result.stdout
            assert f"python -m http.server --directory {target}\n" in result.stdout

    def test_mistakes(self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        line = "'page' has no file extension: give a .safetensors or .onnx file, or 'page/' for a page"
        assert_one_line(run_command("export", str(finished), "page"), line, status=2)
        line = "--runtime and --webgpu are for a page: give a folder such as 'page/', or omit them"
        for option in (["--webgpu"], ["--runtime", "."]):
            assert_one_line(run_command("export", str(finished), "model.onnx", *option), line, status=2)
        line = f"a page needs {WASM[0]} and {WASM[1]} of the npm package onnxruntime-web, and no folder here or above "
        line += "has them: run npm install onnxruntime-web@1.30.0 here, or give the folder it was run in as --runtime"
        assert_one_line(run_command("export", str(finished), "page/"), line, status=1)
        assert list(tmp_path.iterdir()) == []


class TestSources:
    """What a browser would notice."""

    def test_elements_that_the_scripts_ask_for_exist(self) -> None:
        there = set(re.findall(r'\bid="([\w-]+)"', (SOURCES / "index.html").read_text()))
        asked = set(re.findall(r'\belement\("([\w-]+)"\)', (SOURCES / "page.js").read_text()))
        assert {"canvas", "file", "bars"} <= asked <= there

    def test_nothing_is_asked_of_other_servers(self) -> None:
        for path in SOURCES.iterdir():
            if path.suffix in (".html", ".css", ".js"):
                assert not re.search(r"""https?:|["'(]//""", path.read_text()), path.name

    def test_they_are_in_the_package(self) -> None:
        project = (ROOT / "pyproject.toml").read_text()
        for path in SOURCES.iterdir():
            assert path.suffix in (".py", "") or f'"training/site/*{path.suffix}"' in project

    def test_the_page_is_written_with_all_of_them(self) -> None:
        assert {path.name for path in SOURCES.iterdir() if path.suffix in (".html", ".css", ".js")} == set(
            page._SOURCES
        )
