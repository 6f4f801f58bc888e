"""Every model of torchvision: captured exactly, trained through the factors, deployed with the same answers.

`make test` runs a few that differ in kind; `make test-all` runs all of them, which takes a while.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests.helpers import assert_carried_through, may_be_opaque

pytestmark = may_be_opaque

DETECTION = ("rcnn", "retinanet", "fcos", "ssd")
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d", "mvit")
SEGMENTATION = ("deeplabv3", "fcn", "lraspp")
# Models that torchvision can't build or run on small inputs of ours, with the reason; none is left out otherwise.
EXCEPTIONS: dict[str, str] = {}
QUICK = {
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mobilenet_v3_small",
    "googlenet",
    "resnet18",
    "lraspp_mobilenet_v3_large",
    "quantized_mobilenet_v2",
}
NAMES = torchvision.models.list_models()
every_model = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)


def is_of(name: str, kinds: tuple[str, ...]) -> bool:
    return any(kind in name for kind in kinds)


def build(name: str) -> nn.Module:
    """The model with random weights, in its smallest configuration."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None}
    if is_of(name, DETECTION) or is_of(name, SEGMENTATION):
        options["weights_backbone"] = None
    if name.startswith("quantized_"):
        options["quantize"] = False
    if name.startswith("vit_"):
        options["image_size"] = 2 * int(name.rpartition("_")[2])
    if is_of(name, ("rcnn", "retinanet", "fcos")):
        options |= {"min_size": 96, "max_size": 96}
    if is_of(name, ("inception", "googlenet")):
        options["init_weights"] = False
    return torchvision.models.get_model(name, **options)


def inputs_of(name: str) -> tuple[Any, ...]:
    """What the model takes in eval mode."""
    generator = torch.Generator().manual_seed(1)

    def images(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    if is_of(name, DETECTION):
        return ([images(3, 96, 96), images(3, 80, 96)],)
    if is_of(name, VIDEO):
        return (images(1, 3, 16, 224, 224) if is_of(name, ("mvit", "s3d")) else images(2, 3, 16, 64, 64),)
    if name.startswith("raft"):
        return images(1, 3, 128, 128), images(1, 3, 128, 128)
    if name.startswith("vit_"):
        return (images(2, 3, *[2 * int(name.rpartition("_")[2])] * 2),)
    side = 224 if "maxvit" in name else 299 if "inception" in name else 64
    return (images(2, 3, side, side),)


def training_inputs_of(name: str) -> tuple[Any, ...]:
    """What the model takes in train mode."""
    inputs = inputs_of(name)
    if not is_of(name, DETECTION):
        return inputs
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 60.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 96, 96, dtype=torch.uint8),
        "keypoints": torch.tensor([[[20.0, 20.0, 1.0]] * 17]),
    }
    second = target | {"masks": torch.ones(1, 80, 96, dtype=torch.uint8)}
    return *inputs, [target, second]


def test_the_list_is_the_one_that_is_known():
    assert set(NAMES) >= QUICK | EXCEPTIONS.keys()
    assert len(NAMES) >= 121


@every_model
def test_model(name):
    if name in EXCEPTIONS:
        pytest.skip(EXCEPTIONS[name])
    # In double precision, so that no rounding decides which of two boxes is suppressed.
    boxes = is_of(name, DETECTION)
    assert_carried_through(build(name), inputs_of(name), training_inputs_of(name), in_double=boxes)
