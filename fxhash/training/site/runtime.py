"""The files of ONNX Runtime for browsers, which npm installs and a page takes along."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fxhash.errors import TrainingError, shown
from fxhash.storage.paths import read_path

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
_IN_PROJECT = Path("node_modules") / PACKAGE / "dist"


@dataclass(frozen=True)
class Runtime:
    """The two files of the runtime, of those that the package has the smallest that are enough.

    Attributes:
        folder: where they are.
        module: name of the module of JavaScript.
        binary: name of the WebAssembly that it loads.
        version: of the package; None where its `package.json` isn't beside the folder.
    """

    folder: Path
    module: str
    binary: str
    version: str | None


def find_runtime(folder: Path | str | None = None, webgpu: bool = False) -> Runtime:
    """Find the files that npm installed.

    Args:
        folder: the folder `dist` of the package, the package, or a project that it is installed in; if omitted, the
            working directory or the nearest folder above it in which npm installed the package.
        webgpu: whether it is to compute on the GPU where the browser can; nearly twice as large.

    Raises:
        TrainingError: if they are not there, which says what to install.
    """
    module, binary = (
        ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
        if webgpu
        else ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
    )
    if folder is None:
        here = Path.cwd()
        places = [each / _IN_PROJECT for each in (here, *here.parents)]
    else:
        given = read_path(folder)
        places = [given, given / "dist", given / _IN_PROJECT]
    for place in places:
        if all((place / name).is_file() for name in (module, binary)):
            return Runtime(place, module, binary, _version(place.parent / "package.json"))
    where = "no folder here or above has them" if folder is None else f"runtime={shown(str(folder), 200)} has none"
    raise TrainingError(
        f"a page needs {module} and {binary} of the npm package {PACKAGE}, and {where}: run "
        f"npm install {PACKAGE}@{VERSION} here, or give the folder it was run in as runtime=..."
    )


def _version(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
