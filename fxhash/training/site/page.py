"""A page with the model of a run: its files, and the description that tells the page what its model takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from fxhash.errors import CheckpointError, TrainingError
from fxhash.storage.atomic import replacing_folder
from fxhash.storage.paths import read_path
from fxhash.training.finished import export
from fxhash.training.folder import read_configuration
from fxhash.training.site.runtime import Runtime, find_runtime
from fxhash.training.site.webgpu import require_readable, widen_steps

DESCRIPTION, MODEL, RUNTIME = "model.json", "model.onnx", "runtime"
KIND, FORMAT = "fxhash page", 1
_SOURCES = ("index.html", "style.css", "page.js", "model.js", "pictures.js", "drawing.js")

# How digits are drawn in a data set, in fractions of an image's height: how large they are, and how thick a line is.
_DRAWN = {"digits": (1.0, 0.15), "mnist": (20 / 28, 0.09), "mnist5k": (20 / 28, 0.09)}
_DRAWN_OTHERWISE = (None, 0.09)


def export_site(
    folder: Path,
    target: Path,
    dtype: torch.dtype | str | None = None,
    *,
    runtime: Path | None = None,
    webgpu: bool = False,
) -> None:
    """Write the model of a finished run as a static page that classifies pictures in the browser.

    The page is a folder of files for any web server; it asks no other server for anything. A drawing or a picture is
    scaled and normalized as in training. The folder is complete or not there.

    Args:
        folder: the folder of the run.
        target: the folder to write: a new or an empty one, or such a page, which is replaced.
        dtype: type to store the factors in, as of `export` for an `.onnx` file.
        runtime: where npm installed `onnxruntime-web`; if omitted, the working directory or a folder above it.
        webgpu: whether the page computes on the GPU where the browser can; its runtime is nearly twice as large.

    Raises:
        TrainingError: if the run is not finished, its images have neither 1 nor 3 channels, the target holds anything
            else, the runtime is not there, or can't read this `dtype` on the GPU.
        PlanError: for a `dtype` that factors can't be stored in.
        CheckpointError: if the folder can't be written.
    """
    place = read_path(target)
    _require_free(place)
    options, configuration = read_configuration(folder)
    if configuration["channels"] not in (1, 3):
        raise TrainingError(
            f"the run in {str(folder)!r} is on images of {configuration['channels']} channels: a page takes pictures, "
            "which have 1 or 3"
        )
    if webgpu:
        require_readable(dtype)
    found = find_runtime(runtime, webgpu)
    try:
        with replacing_folder(place) as temporary:
            export(folder, temporary / MODEL, dtype)
            if webgpu and dtype is not None:
                widen_steps(temporary / MODEL)
            for name in _SOURCES:
                shutil.copyfile(Path(__file__).parent / name, temporary / name)
            (temporary / RUNTIME).mkdir()
            for name in (found.module, found.binary):
                shutil.copyfile(found.folder / name, temporary / RUNTIME / name)
            description = {
                "kind": KIND,
                "format": FORMAT,
                "network": options.network,
                **{name: configuration[name] for name in ("classes", "channels", "size", "mean", "std")},
                "drawing": _drawing(options.data, configuration),
                "runtime": _runtime(found, webgpu),
                "bytes": _file_sizes(temporary),
            }
            (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{target} can't be written: {error}") from error


def _file_sizes(folder: Path) -> dict[str, int]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _require_free(place: Path) -> None:
    """Refuse to replace anything but a page, and files that somebody laid into one.

    Raises:
        TrainingError: see above.
    """
    if not place.exists():
        return
    if not place.is_dir():
        raise TrainingError(f"{str(place)!r} is a file: give a folder for the page")
    found = {file.relative_to(place).as_posix() for file in place.rglob("*") if not file.is_dir() or file.is_symlink()}
    other = sorted(found - _files_of_page(place / DESCRIPTION))
    if other:
        raise TrainingError(
            f"{str(place)!r} holds {other[0]!r}, which is not of a page that was exported before: give a new or an "
            "empty folder"
        )


def _files_of_page(description: Path) -> set[str]:
    """The files that a page was written with; none where there is no such page."""
    try:
        values = json.loads(description.read_text(encoding="utf-8"))
        return {DESCRIPTION, *values["bytes"]} if values["kind"] == KIND else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _drawing(data: str, configuration: dict[str, Any]) -> dict[str, float | None] | None:
    """How what is drawn becomes an image; None where the images are no drawings of one colour on a square."""
    height, width = configuration["size"]
    if configuration["channels"] != 1 or height != width:
        return None
    size, line = _DRAWN.get(data, _DRAWN_OTHERWISE)
    return {"size": size, "line": line}


def _runtime(found: Runtime, webgpu: bool) -> dict[str, object]:
    return {
        "version": found.version,
        "module": f"{RUNTIME}/{found.module}",
        "binary": f"{RUNTIME}/{found.binary}",
        "webgpu": webgpu,
    }
