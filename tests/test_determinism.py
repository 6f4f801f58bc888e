"""The same input gives the same bytes in every process, whatever the hash seed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import fxhash
from tests.helpers import may_be_opaque

pytestmark = may_be_opaque

PROGRAM = """
import sys, torch, fxhash
from tests.models import MODELS
torch.set_num_threads(1)
for name in ("ResidualConvNet", "TiedEmbedding", "LSTM", "MixedTypes"):
    torch.manual_seed(0)
    gm = fxhash.transform(MODELS[name][0](), 0.6, seed=3)
    fxhash.save(gm, sys.argv[1] + name)
    print(gm.code, fxhash.lower_for_deploy(gm).code)
inputs = [MODELS["ResidualConvNet"][1]()]
gm = fxhash.transform(MODELS["ResidualConvNet"][0](), 0.6, seed=3, init="pretrained", calibration=inputs)
fxhash.save(gm, sys.argv[1] + "calibrated")
"""


class DrawsInEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(4, 32, 3), nn.Linear(32, 64)

    def forward(self, x):
        return self.linear(self.convolution(x).mean((2, 3))) + 0 * torch.randn(64)


@pytest.mark.parametrize("capture", ["trace", "modules"])
def test_random_numbers_of_the_caller_are_left_alone(capture, tmp_path):
    """Whatever is called with example inputs draws others."""
    model, x = DrawsInEval(), torch.randn(2, 4, 8, 8)
    gm = fxhash.transform(model, 0.5, seed=0, capture=capture)
    before = torch.get_rng_state()
    fxhash.transform(model, 0.5, seed=0, capture=capture, init="pretrained", calibration=[x], example_inputs=(x,))
    lowered = fxhash.lower_for_deploy(gm, example_inputs=(x,))
    fxhash.recover(gm, model, [x, x], steps=1)
    if importlib.util.find_spec("onnxscript"):
        fxhash.export_onnx(lowered, (x,), tmp_path / "model.onnx")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_bytes_are_equal_across_processes(tmp_path):
    digests = set()
    for hash_seed in ("0", "1", "4242"):
        prefix = str(tmp_path / hash_seed)
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, prefix],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            check=True,
        )
        digest = hashlib.sha256(result.stdout)
        for file in sorted(tmp_path.glob(f"{hash_seed}*")):
            digest.update(file.read_bytes())
        digests.add(digest.hexdigest())
    assert len(digests) == 1
