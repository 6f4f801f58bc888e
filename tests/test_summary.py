"""What `summary` prints."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import fxhash
from tests.models import Attention, ResidualConvNet, StarArguments


def test_prints_every_parameter_and_the_totals(capsys):
    model = ResidualConvNet()
    result = fxhash.summary(fxhash.transform(model, 0.3))
    printed = capsys.readouterr().out
    assert printed == f"{result}\n"
    for fqn, parameter in model.named_parameters():
        (line,) = [line for line in printed.splitlines() if line.startswith(fqn + " ")]
        assert "x".join(map(str, parameter.shape)) in line
        assert ("hashed" in line) == (parameter.dim() >= 2)
    assert f"{result.trainable_before:,}" in printed
    assert f"{result.trainable_after:,}" in printed
    assert result.trainable_before == sum(parameter.numel() for parameter in model.parameters())


def test_says_what_could_not_be_traced_and_why(capsys):
    result = fxhash.summary(fxhash.lower_for_deploy(fxhash.transform(Attention(), 0.6)))
    reason = "torch.nn.MultiheadAttention branches on its inputs or mode"
    assert result.opaque_parts == (("attention", reason, 4 * 16 * 16),)
    assert f"attention (100.0% of the generated weights): {reason}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "captured"),
    [
        (ResidualConvNet(), "traced"),
        (torch.fx.symbolic_trace(ResidualConvNet()), "traced again, as a graph module"),
        (StarArguments(), "called as a whole"),
    ],
)
def test_says_how_the_model_was_captured(model, captured):
    gm = fxhash.transform(model, 0.6)
    for each in (gm, pickle.loads(pickle.dumps(gm)), fxhash.lower_for_deploy(gm)):
        assert fxhash.summary(each).captured == f"{captured}, not checked"


def test_only_transformed_models():
    with pytest.raises(fxhash.TransformError, match="this Linear has no generator"):
        fxhash.summary(nn.Linear(3, 3))
