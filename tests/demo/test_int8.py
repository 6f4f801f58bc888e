"""The rival in 8 bits: how close it is, how many bytes it takes, and that it leaves all as it was."""

import pytest
import torch
from torch import nn

from fxhash import zoo
from fxhash.demo import int8
from fxhash.demo.int8 import quantize, quantized_bytes


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return zoo.create("resnet8", width=8, in_channels=1).eval()


def test_computes_nearly_the_same_in_a_quarter_of_the_bytes(model: nn.Module) -> None:
    images = torch.randn(64, 1, 8, 8)
    engine, before = torch.backends.quantized.engine, {key: value.clone() for key, value in model.state_dict().items()}
    quantized = quantize(model, images)
    if quantized is None:
        pytest.skip("this version of torch has no static quantization, or this machine no kernels for it")
    with torch.inference_mode():
        expected, actual = model(images), quantized(images)
    assert (expected - actual).norm() < 0.1 * expected.norm()
    assert torch.backends.quantized.engine == engine
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    weights = sum(each.numel() for each in model.parameters() if each.dim() > 1)
    channels = sum(len(each) for each in model.parameters() if each.dim() > 1)
    # A scale and a zero point of 8 bytes each, and a bias of 4, for each channel; scales of activations.
    assert weights + 20 * channels <= quantized_bytes(quantized) <= weights + 20 * channels + 1000


def test_none_where_it_can_not_be_done(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernels")

    monkeypatch.setattr(int8.copy, "deepcopy", fail)
    engine = torch.backends.quantized.engine
    assert quantize(model, torch.randn(2, 1, 8, 8)) is None
    assert torch.backends.quantized.engine == engine
