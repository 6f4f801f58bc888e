"""What `summary` prints."""

from __future__ import annotations

import pytest
from torch import nn

import fxhash
from tests.models import Attention, ResidualConvNet


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
    assert result.opaque_parts == (("attention", "torch.nn.MultiheadAttention branches on its inputs or mode"),)
    assert "attention: torch.nn.MultiheadAttention branches" in capsys.readouterr().out


def test_only_transformed_models():
    with pytest.raises(fxhash.TransformError, match="this Linear has no generator"):
        fxhash.summary(nn.Linear(3, 3))
