"""Files that earlier versions wrote load to the same outputs.

`tests/files/` was written at commit 1fd7602, before the package was laid out anew: each model in float32, bfloat16 and
8 bits, and in `expected.safetensors` the input of each, and the outputs of what that version loaded from each file, in
eval mode.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxhash

FILES = Path(__file__).parent.parent / "files"


class Network(nn.Module):
    """A batch norm, tied weights, and a recurrent layer, which is opaque. Must never change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 24, 3, padding=1)
        self.recurrent = nn.LSTM(24, 20, batch_first=True)
        self.tied = nn.Linear(20, 20)
        self.again = nn.Linear(20, 20)
        self.again.weight = self.tied.weight
        self.head = nn.Linear(20, 400)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x, _ = self.recurrent(self.body(x).flatten(2).transpose(1, 2))
        return self.head(torch.tanh(self.again(torch.tanh(self.tied(x.mean(1))))))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["regular", "separable"])
def test_a_file_of_an_earlier_version_loads_to_the_same_outputs(kind, stored):
    expected = safetensors.torch.load_file(FILES / "expected.safetensors")
    gm = fxhash.load(FILES / f"{kind}_{stored}.safetensors", Network()).eval()
    assert any(parameter.kernels for parameter in gm.smh_generator.plan.hashed) is (kind == "separable")
    with torch.no_grad():
        x = expected["input"]
        torch.testing.assert_close(gm(x), expected[f"{kind}_{stored}"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fxhash.lower_for_deploy(gm)(x), gm(x), rtol=1e-4, atol=1e-5)
