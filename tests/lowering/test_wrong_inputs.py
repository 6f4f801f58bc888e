"""Lowered models that are called wrongly: the message names the layer and what it takes, and training is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxhash
from fxhash.errors import InputError
from tests.helpers import may_be_opaque

pytestmark = may_be_opaque


class Opaque(nn.Module):
    """A layer nested in a submodule that can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if x.sum() > 1e9 else self.fc(x) + 1


NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)), (2, 64)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(32, 64, 3), nn.BatchNorm1d(64), nn.Conv1d(64, 32, 3)), (2, 32, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 32, 3)), (2, 32, 9, 9)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(32, 64, 3), nn.Conv3d(64, 32, 3)), (2, 32, 9, 9, 9)),
    "separable": (lambda: nn.Sequential(nn.Conv2d(256, 64, 3), nn.Conv2d(64, 64, 3)), (2, 256, 9, 9)),
    "opaque": (lambda: nn.Sequential(nn.Linear(64, 64), Opaque()), (2, 64)),
}
WHAT = {
    "linear": r"layer '0' takes inputs of shape \(\.\.\., 64\), got shape \(2, 65\)",
    "conv1d": r"layer '0' takes inputs of shape \(batch, 32, length\), got shape \(2, 33, 9\)",
    "conv2d": r"layer '0' takes inputs of shape \(batch, 32, height, width\), got shape \(2, 33, 9, 9\)",
    "conv3d": r"layer '0' takes inputs of shape \(batch, 32, depth, height, width\), got shape \(2, 33, 9, 9, 9\)",
    "separable": r"layer '0' takes inputs of shape \(batch, 256, height, width\), got shape \(2, 257, 9, 9\)",
    "opaque": r"layer '0' takes inputs of shape \(\.\.\., 64\), got shape \(2, 65\)",
}


def lowered(name, method=None, compress=0.1):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    gm = fxhash.transform(make(), compress, seed=0)
    return fxhash.lower_for_deploy(gm, methods=None if method is None else {".": method}), list(shape)


@pytest.mark.parametrize("method", [None, "generate", "cache"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_layer_is_named_with_the_size_that_it_takes(name, method, capsys):
    model, shape = lowered(name, method)
    with torch.no_grad():
        model(torch.zeros(shape))
        shape[1] += 1
        with pytest.raises(InputError, match=WHAT[name]):
            model(torch.zeros(shape))
        with pytest.raises(InputError, match="layer '0' takes"):
            model(torch.zeros(()))
    # Torch prints the code of a graph in which torch itself fails.
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("method", [None, "factored"])
def test_a_nested_layer(method):
    model, _ = lowered("opaque", method)
    (nested,) = (module for module in model.modules() if type(module).__name__ == "LoweredLinear")
    with pytest.raises(InputError, match=r"layer '1\.fc' takes inputs of shape \(\.\.\., 64\), got shape \(2, 65\)"):
        nested(torch.zeros(2, 65))


def test_an_embedding_takes_whole_numbers():
    gm = fxhash.transform(nn.Sequential(nn.Embedding(1000, 64), nn.Linear(64, 64)), 0.1, seed=0)
    model = fxhash.lower_for_deploy(gm)
    with pytest.raises(InputError, match=r"layer '0' takes whole numbers from 0 to 999, got of type torch\.float32"):
        model(torch.zeros(2))


def test_a_later_layer_is_named():
    """Images of another size fit all but the head."""
    net = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 64))
    model = fxhash.lower_for_deploy(fxhash.transform(net, 0.1, seed=0))
    with (
        torch.no_grad(),
        pytest.raises(InputError, match=r"layer '3' takes .* \(\.\.\., 1024\), got shape \(1, 1600\)"),
    ):
        model(torch.zeros(1, 16, 7, 7))


@pytest.mark.parametrize("name", ["linear", "conv2d", "opaque"])
def test_training_a_lowered_model_is_refused(name):
    model, shape = lowered(name)
    expected = model(torch.ones(shape))
    for start in (model.train, lambda: model.eval().requires_grad_(True)):
        start()
        with pytest.raises(InputError, match="is lowered, which is for inference alone: train the transformed model"):
            model(torch.ones(shape))
    assert torch.equal(model.eval().requires_grad_(False)(torch.ones(shape)), expected)


def test_the_error_is_one_of_torch_too():
    """Whoever has caught what torch raises for wrong sizes still does."""
    assert issubclass(InputError, (RuntimeError, ValueError))
    assert issubclass(InputError, fxhash.FxhashError)
