"""The same answers on every device, in every type and memory format. Tests of CUDA run where there is a device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import fxhash
from tests.helpers import assert_same_outputs, smallest_transform
from tests.lowering.test_lowered_models import SlotUser, perturb
from tests.models import MODELS

without_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=without_cuda)])
MODELS_TO_TRY = {
    name: MODELS[name]
    for name in ("ResidualConvNet", "TiedEmbedding", "Attention", "LSTM", "Conv1d", "ConvCalledTwice")
} | {"SlotUser": (SlotUser, lambda: (torch.randn(2, 4, 6, 6),))}
every_model = pytest.mark.parametrize("name", MODELS_TO_TRY)


@pytest.fixture(autouse=True)
def exact_products():
    """Full single precision on CUDA, where convolutions may use TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def on_device(name, device):
    torch.manual_seed(0)
    build, make_inputs = MODELS_TO_TRY[name]
    inputs = tuple(tensor.to(device) for tensor in make_inputs())
    gm = smallest_transform(build().to(device), 0.5, seed=0)
    return gm, inputs


@every_device
@every_model
def test_trained_and_deployed_on_a_device(name, device):
    gm, inputs = on_device(name, device)
    gm(*inputs).float().square().mean().backward()
    gradients = [parameter.grad for parameter in gm.smh_generator.left]
    assert all(gradient.device.type == device and gradient.abs().sum() > 0 for gradient in gradients)
    perturb_on_cpu(gm)
    for options in ({}, {"memory_budget": "1GB"}, {"methods": {"": "generate"}}):
        assert_same_outputs(gm.eval(), fxhash.lower_for_deploy(gm, **options), *inputs)


def perturb_on_cpu(gm):
    device = next(gm.parameters()).device
    perturb(gm.cpu())
    gm.to(device)


@every_device
@every_model
def test_moved_after_lowering(name, device):
    gm, inputs = on_device(name, "cpu")
    deployed = fxhash.lower_for_deploy(gm)
    with torch.inference_mode():
        expected = deployed(*inputs)
        moved = deployed.to(device)(*(tensor.to(device) for tensor in inputs))
    torch.testing.assert_close(moved.cpu(), expected, rtol=1e-4, atol=1e-5)


@every_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_model
def test_deployed_in_a_narrow_type(name, dtype, device):
    gm, inputs = on_device(name, device)
    gm.eval()
    narrow = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs)
    with torch.inference_mode():
        expected = gm(*inputs)
        actual = fxhash.lower_for_deploy(gm, dtype=dtype)(*narrow)
    assert actual.dtype == dtype
    # Three decimal digits of bfloat16, two of which are left after a few layers; measured against the largest value.
    assert (actual.float() - expected).abs().max() <= 4e-2 * expected.abs().max()


@every_device
@pytest.mark.parametrize("name", ["ResidualConvNet", "SlotUser"])
def test_channels_last_on_a_device(name, device):
    gm, (x,) = on_device(name, device)
    deployed = fxhash.lower_for_deploy(gm).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        actual = deployed(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(actual, gm.eval()(x), rtol=1e-4, atol=1e-5)


@every_device
def test_threads_share_one_model_on_a_device(device):
    gm, _ = on_device("SlotUser", device)
    deployed = fxhash.lower_for_deploy(gm)
    batches = [torch.randn(1 + index % 3, 4, 6, 6, device=device) for index in range(40)]

    def call(batch):
        stream = torch.cuda.Stream() if device == "cuda" else None
        with torch.inference_mode(), torch.cuda.stream(stream):
            result = deployed(batch)
        if stream is not None:
            stream.synchronize()
        return result

    serial = [call(batch) for batch in batches]
    with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parallel = list(pool.map(call, batches))
    assert all(torch.equal(one, other) for one, other in zip(serial, parallel, strict=True))


@without_cuda
def test_one_model_on_two_devices_is_refused():
    model = nn.Sequential(nn.Linear(30, 30).cuda(), nn.Linear(30, 30))
    with pytest.raises(fxhash.TransformError, match="on several devices"):
        fxhash.transform(model, 0.5)


@every_device
@pytest.mark.parametrize("calibration", [None, [torch.randn(16, 24)]])
@pytest.mark.filterwarnings("ignore:.*calibration:UserWarning")
def test_a_pretrained_start_on_another_device_than_the_model(calibration, device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 48), nn.LayerNorm(48), nn.Linear(48, 24))
    options = {"init": "pretrained", "calibration": calibration, "seed": 0}
    expected = fxhash.transform(model, 0.7, **options)
    gm = fxhash.transform(model, 0.7, device=device, **options)
    assert all(parameter.device.type == device for parameter in gm.parameters())
    torch.testing.assert_close(gm.cpu()(torch.ones(2, 24)), expected(torch.ones(2, 24)), rtol=1e-3, atol=1e-4)
