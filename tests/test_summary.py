"""What `summary` prints."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import fxhash
from tests.helpers import may_be_opaque
from tests.models import Attention, ResidualConvNet, StarArguments

pytestmark = may_be_opaque


def test_prints_three_lines(capsys):
    model = ResidualConvNet()
    model.body.weight.requires_grad_(False)
    gm = fxhash.transform(model, 0.3)
    result = fxhash.summary(gm)
    parameters, size, ratio = capsys.readouterr().out.splitlines()
    before = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    after = sum(parameter.numel() for parameter in gm.parameters() if parameter.requires_grad)
    assert parameters == f"parameters: {after:,} trainable after, {before:,} before"
    assert f"{sum(each.nbytes for each in model.parameters()) / 1e3:.1f} kB before" in size
    assert f"{sum(each.nbytes for each in gm.parameters()) / 1e3:.1f} kB after" in size
    assert f"{after / before:.2%} of the parameters" in ratio
    assert "\n" not in repr(result)
    assert len(repr(result)) < 100


def test_the_table_has_every_parameter_and_the_totals(capsys):
    model = ResidualConvNet()
    result = fxhash.summary(fxhash.transform(model, 0.3), verbose=True)
    assert capsys.readouterr().out == f"{result}\n\n{result.table}\n"
    for fqn, parameter in model.named_parameters():
        (line,) = [line for line in result.table.splitlines() if line.startswith(fqn + " ")]
        assert "x".join(map(str, parameter.shape)) in line
        assert ("hashed" in line) == (parameter.dim() >= 2)
    assert f"{result.trainable_before:,}" in result.table
    assert f"{result.trainable_after:,}" in result.table
    assert result.trainable_before == sum(parameter.numel() for parameter in model.parameters())


def test_says_what_could_not_be_traced_and_why():
    result = fxhash.summary(fxhash.lower_for_deploy(fxhash.transform(Attention(), 0.6)))
    reason = "torch.nn.MultiheadAttention branches on its inputs or mode"
    assert result.opaque_parts == (("attention", reason, 4 * 16 * 16, "", ""),)
    assert f"attention (100.0% of the generated weights): {reason}" in result.table


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
