"""The page of a run in a browser: what it says is what Python says. `make test-browser` runs this."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.browser.visiting import WEB, require_browser, visit
from tests.cli.helpers import run_process
from tests.helpers import skip_unless_onnx_has_open_sizes

pytest.importorskip("lightning")
pytest.importorskip("onnxscript")
pytest.importorskip("torchvision")

from PIL import Image

from fxhash.training import load_data
from fxhash.training.folder import load_model, read_configuration
from fxhash.training.preprocessing import ReadsBytes
from tests.training.tiny import write_images

pytestmark = pytest.mark.slow

# A zero, as somebody might draw it.
ZERO = [[[0.5 + 0.2 * math.sin(turn / 3), 0.5 - 0.33 * math.cos(turn / 3)] for turn in range(20)]]

SITE = WEB.parent / "fxhash" / "training" / "site"
SCALE = """
import { readFileSync } from "node:fs";
const { imageOf } = await import(process.argv[1]);
const planes = JSON.parse(readFileSync(0)).map((each) => imageOf(...each).map((plane) => [...plane]));
console.log(JSON.stringify(planes));
"""


@pytest.fixture(scope="module", autouse=True)
def _browser() -> None:
    require_browser()
    skip_unless_onnx_has_open_sizes()


def command(*arguments: str) -> None:
    result = run_process(*arguments, cwd=WEB)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the compressed ResNet-8 on digits, its pages, and what Python loads in the place of two of them."""
    folder = tmp_path_factory.mktemp("digits")
    command("train", "--model", "resnet8", "-c", "0.3", "--epochs", "6", "--device", "cpu", "-o", f"{folder}/run")
    command("export", f"{folder}/run", f"{folder}/page/")
    command("export", f"{folder}/run", f"{folder}/int4/", "--dtype", "int4")
    command("export", f"{folder}/run", f"{folder}/int4.safetensors", "--dtype", "int4")
    command("export", f"{folder}/run", f"{folder}/webgpu/", "--dtype", "int8", "--webgpu")
    command("export", f"{folder}/run", f"{folder}/int8.safetensors", "--dtype", "int8")
    return folder


def probabilities(run: Path, file: Path | None = None) -> Callable[[Tensor], Tensor]:
    _, configuration = read_configuration(run)
    model = ReadsBytes(load_model(run, file), configuration["mean"], configuration["std"]).eval()

    def of(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model(images).softmax(1)

    return of


def seen(answer: dict[str, Any], channels: int, side: int) -> Tensor:
    """The image that the page says that its model saw."""
    return torch.tensor(answer["seen"], dtype=torch.uint8).view(1, side, side, 4).permute(0, 3, 1, 2)[:, :channels]


def scaled(image: Any, width: int, height: int) -> Any:
    """By Pillow, first the rows and then the columns; which comes first there depends on its version."""
    return image.resize((width, image.height)).resize((width, height))


def as_pictures(images: Tensor, folder: Path) -> list[str]:
    """Images of one channel as files, in modes of their own."""
    paths = []
    for index, image in enumerate(images):
        path = folder / f"{index}.png"
        Image.fromarray(image[0].numpy()).convert(["L", "RGB", "RGBA"][index % 3]).save(path)
        paths.append(str(path))
    return paths


def assert_only_local(visited: dict[str, Any]) -> None:
    assert visited["messages"] == []
    assert len(visited["requests"]) > 8
    assert all(request.startswith(("http://localhost:", "blob:http://localhost:")) for request in visited["requests"])


def test_test_images_and_drawings(digits: Path, tmp_path: Path) -> None:
    images = load_data("digits").test_images[:12]
    shots = tmp_path / "page.png"
    visited = visit(
        digits / "page",
        pictures=as_pictures(images, tmp_path),
        strokes=ZERO,
        keys=["ArrowUp"] * 3 + ["Shift+ArrowDown"] + ["ArrowDown"] * 5,
        screenshot=str(shots),
    )
    assert visited["provider"] == "wasm"
    assert_only_local(visited)
    expected = probabilities(digits / "run")
    for image, answer in zip(images, visited["pictures"], strict=True):
        assert torch.equal(seen(answer, 1, 8)[0], image)
        torch.testing.assert_close(torch.tensor(answer["probabilities"]), expected(image[None])[0], rtol=0, atol=1e-3)
    for name in ("drawing", "typed"):
        image = seen(visited[name], 1, 8)
        # From the upper edge to the lower, in the middle.
        assert (image.amax((0, 1, 3)) > 50).all()
        assert (image[..., [0, 7]] < 50).all()
        got = torch.tensor(visited[name]["probabilities"])
        torch.testing.assert_close(got, expected(image)[0], rtol=0, atol=1e-3)
    assert visited["drawing"]["answer"].startswith("0, ")
    assert visited["shown"][0].endswith("kB")
    assert visited["shown"][4] == "WebAssembly"
    assert shots.stat().st_size > 10_000


def test_on_the_gpu(digits: Path, tmp_path: Path) -> None:
    images = load_data("digits").test_images[:3]
    visited = visit(digits / "webgpu", pictures=as_pictures(images, tmp_path))
    if not visited["adapter"]:
        assert visited["provider"] == "wasm", "without an adapter the same page computes in WebAssembly"
        pytest.skip("navigator.gpu gives no adapter here")
    assert visited["provider"] == "webgpu"
    assert_only_local(visited)
    got = torch.tensor([answer["probabilities"] for answer in visited["pictures"]])
    expected = probabilities(digits / "run", digits / "int8.safetensors")
    torch.testing.assert_close(got, expected(images), rtol=0, atol=1e-3)


def test_factors_in_four_bits(digits: Path, tmp_path: Path) -> None:
    images = load_data("digits").test_images[:5]
    visited = visit(digits / "int4", pictures=as_pictures(images, tmp_path))
    assert_only_local(visited)
    got = torch.tensor([answer["probabilities"] for answer in visited["pictures"]])
    expected = probabilities(digits / "run", digits / "int4.safetensors")(images)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    assert (expected - probabilities(digits / "run")(images)).abs().max() > 1e-3, "four bits make a difference"


def test_pictures_in_colour(tmp_path: Path) -> None:
    """Of any size, scaled as Pillow scales them."""
    write_images(tmp_path / "images")
    run, page = tmp_path / "run", tmp_path / "page"
    options = ["--data", f"imagefolder:{tmp_path / 'images'}", "--epochs", "1", "--device", "cpu"]
    command("train", "--model", "resnet8", "-c", "0.3", *options, "-o", str(run))
    command("export", str(run), f"{page}/")
    random = np.random.default_rng(0)
    pictures, expected = [], []
    for height, width in ((8, 8), (8, 1), (37, 21), (5, 300)):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        pictures.append(str(tmp_path / f"{height}x{width}.png"))
        image.save(pictures[-1])
        expected.append(torch.from_numpy(np.asarray(scaled(image, 8, 8)).copy()).permute(2, 0, 1))
    (tmp_path / "no picture.png").write_bytes(b"no picture")
    visited = visit(page, pictures=[*pictures, str(tmp_path / "no picture.png"), pictures[0]])
    *answers, none, again = visited["pictures"]
    for image, answer in zip(expected, answers, strict=True):
        assert torch.equal(seen(answer, 3, 8)[0], image)
        got = torch.tensor(answer["probabilities"])
        torch.testing.assert_close(got, probabilities(run)(image[None])[0], rtol=0, atol=1e-3)
    assert none["probabilities"] is None
    assert again == answers[0], "a picture that can't be read is the end of nothing"
    assert_only_local(visited)


def test_a_page_that_lacks_a_file(digits: Path) -> None:
    model = digits / "webgpu" / "model.onnx"
    model.rename(model.with_suffix(".away"))
    visited = visit(digits / "webgpu")
    model.with_suffix(".away").rename(model)
    assert visited["provider"] is None
    assert visited["status"] == "This did not work: model.onnx can't be loaded: 404 Not Found"


def test_any_size_is_scaled_as_pillow_does_it() -> None:
    """In grey too, and where weights below zero make sums that no byte can be."""
    random = np.random.default_rng(0)
    asked, expected = [], []
    for index in range(40):
        width, height, new_width, new_height = (int(each) for each in random.integers(1, 70, 4))
        levels, white = ((256, 1), (2, 255))[index % 2]
        image = Image.fromarray((white * random.integers(0, levels, (height, width, 3))).astype(np.uint8))
        picture = {"width": width, "height": height, "data": np.asarray(image.convert("RGBA")).flatten().tolist()}
        for mode, channels in (("RGB", 3), ("L", 1)):
            asked.append([picture, {"channels": channels, "size": [new_height, new_width]}])
            planes = np.asarray(scaled(image.convert(mode), new_width, new_height)).reshape(-1, channels).T
            expected.append(planes.tolist())
    result = subprocess.run(
        ["node", "--input-type=module", "-e", SCALE, (SITE / "pictures.js").as_uri()],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == expected
