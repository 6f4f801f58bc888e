"""Pages of one network in headless Chromium: bytes to send, time to start, time a picture, and what they say.

The dense network and the compressed one in each type of factors, each trained on digits for a few epochs: neither size
nor time depends on it. A first call makes the runs and the pages, which takes minutes; a second one finds them and
measures alone. The packages of Node must be there: `make test-browser` installs them.

    python benchmarks/browser.py DIR --output benchmarks/results/browser.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import head

from fxhash.training import RunOptions, export, export_site, load_data, load_recipe, train
from fxhash.training.folder import load_model, read_configuration
from fxhash.training.preprocessing import ReadsBytes

WEB = Path(__file__).parent.parent / "web"
NETWORK, COMPRESS, EPOCHS, PICTURES = "resnet20", 0.1, 10, 20
# Name -> the fraction, and the type of the factors.
PAGES: dict[str, tuple[float | None, str | None]] = {
    "dense": (None, None),
    "fxhash 10 %": (COMPRESS, None),
    "fxhash 10 %, 8 bits": (COMPRESS, "int8"),
    "fxhash 10 %, 4 bits": (COMPRESS, "int4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where runs and pages are, or are made")
    parser.add_argument("--calls", type=int, default=100, help="pictures to time on each page, each round")
    parser.add_argument("--starts", type=int, default=2, help="how often to load each page without a cache, each round")
    parser.add_argument("--rounds", type=int, default=3, help="how often to go through all pages")
    parser.add_argument("--output", type=Path, help="the record; it is printed if omitted")
    arguments = parser.parse_args()
    for name, (compress, dtype) in PAGES.items():
        prepare(arguments.folder, name, compress, dtype)
    pictures = save_pictures(arguments.folder)
    visits: dict[str, list[dict[str, Any]]] = {name: [] for name in PAGES}
    for _ in range(arguments.rounds):
        for name in PAGES:
            print(name, file=sys.stderr, flush=True)
            visits[name].append(visit(arguments.folder / name, pictures, arguments.calls, arguments.starts))
    results = [{"page": name, **measured(arguments.folder / name, visits[name])} for name in PAGES]
    # In the end, so that nothing of PyTorch runs beside the browser.
    for result in results:
        compress, _ = PAGES[str(result["page"])]
        run, file = run_folder(arguments.folder, compress), weights_file(arguments.folder, str(result["page"]))
        expected = probabilities(run, file)
        difference = np.abs(np.array(result.pop("probabilities")) - expected.numpy()).max()
        result["largest_difference"] = float(f"{difference:.1e}")
    browser = {result.pop("browser") for result in results}
    assert len(browser) == 1
    record = {
        **head(hidden=[arguments.folder]),
        "browser": f"Chromium {browser.pop()}, headless",
        "onnxruntime-web": json.loads((WEB / "package.json").read_text())["dependencies"]["onnxruntime-web"],
        "network": NETWORK,
        "calls": arguments.calls,
        "starts": arguments.starts,
        "rounds": arguments.rounds,
        "pictures": PICTURES,
        "results": results,
    }
    text = json.dumps(record, indent=1) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text, end="")


def run_folder(folder: Path, compress: float | None) -> Path:
    return folder / "runs" / str(compress or "dense")


def prepare(folder: Path, name: str, compress: float | None, dtype: str | None) -> None:
    """Make a run and its page, if they are not there."""
    run = run_folder(folder, compress)
    if not (run / "result.json").exists():
        recipe = load_recipe("digits").with_changes({"epochs": EPOCHS})
        train(RunOptions(NETWORK, "digits", recipe, compress, device="cpu"), run)
    if not (folder / name).exists():
        export_site(run, folder / name, dtype, runtime=WEB)
        export(run, weights_file(folder, name), dtype)


def weights_file(folder: Path, name: str) -> Path:
    """What Python loads in the place of a page: the same factors in the same type."""
    return folder / f"{name}.safetensors"


def save_pictures(folder: Path) -> list[str]:
    """Files of the first images of the test."""
    paths = [folder / f"{index}.png" for index in range(PICTURES)]
    for path, image in zip(paths, load_data("digits").test_images[:PICTURES], strict=True):
        Image.fromarray(image[0].numpy()).save(path)
    return [str(path.resolve()) for path in paths]


def visit(page: Path, pictures: list[str], calls: int, starts: int) -> dict[str, Any]:
    """What happened at a page, as `web/visit.mjs` tells it."""
    asked = {"folder": str(page.resolve()), "pictures": pictures, "calls": calls, "starts": starts}
    run = subprocess.run(
        ["node", str(WEB / "visit.mjs")], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    visited = json.loads(run.stdout)
    assert visited["provider"] == "wasm", visited["status"]
    return visited


def measured(page: Path, visits: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes of a page, and medians of its times in milliseconds.

    Returns:
        Among others `session_milliseconds`, the time to a session from a model that is there and a runtime that is not;
        `session_again_milliseconds`, that of another session, once the runtime is compiled; and `picture_milliseconds`,
        the median over the rounds of the medians of each.
    """
    runtime = list((page / "runtime").iterdir())
    loads = [load for visited in visits for load in visited["loads"]]
    return {
        "model_bytes": (page / "model.onnx").stat().st_size,
        "model_bytes_gzip": zipped(page / "model.onnx"),
        "runtime_bytes": sum(file.stat().st_size for file in runtime),
        "runtime_bytes_gzip": sum(map(zipped, runtime)),
        "session_milliseconds": round(statistics.median(load["first"] for load in loads), 1),
        "session_again_milliseconds": round(statistics.median(load["again"] for load in loads), 1),
        "picture_milliseconds": round(statistics.median(statistics.median(each["milliseconds"]) for each in visits), 3),
        "browser": visits[0]["browser"],
        "probabilities": [answer["probabilities"] for answer in visits[0]["pictures"]],
    }


def zipped(file: Path) -> int:
    """Bytes of a file as a web server sends it that compresses."""
    return len(gzip.compress(file.read_bytes(), mtime=0))


def probabilities(run: Path, file: Path) -> torch.Tensor:
    """What Python says of the pictures."""
    _, configuration = read_configuration(run)
    model = ReadsBytes(load_model(run, file), configuration["mean"], configuration["std"])
    with torch.inference_mode():
        return model(load_data("digits").test_images[:PICTURES]).softmax(1)


if __name__ == "__main__":
    main()
