"""Where much of a model can't be traced, `transform` says so, and what would help."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxhash
from tests.models import Attention
from tests.odd.registry import Two

BRANCHES = "its forward branches on a value that comes from its input"


def is_positive(x):
    return bool((x > 0).all())


class Branches(Two):
    def forward(self, x):
        h = self.a(x)
        if is_positive(h):
            h = -h
        return self.b(h)


class BranchesInside(nn.Module):
    """Its opaque submodule has 512 weights, the layer after it 16 times `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block, self.after = Branches(), nn.Linear(16, width)

    def forward(self, x):
        return self.after(self.block(x))


class DrawsInPython(Branches):
    def forward(self, x):
        import random

        return self.b(self.a(x)) * random.random()


class DrawsAndBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Branches(), DrawsInPython(), Branches())

    def forward(self, x):
        return self.blocks(x)


def line_of(kind: type[nn.Module], after: int) -> str:
    return f"tests/test_opaque_parts.py:{kind.forward.__code__.co_firstlineno + after} in forward"


def announced(model: nn.Module, **options) -> list[str]:
    """The warnings of a transform."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fxhash.transform(model, 0.9, seed=0, **options)
    assert all(each.category is fxhash.OpaqueWarning and each.filename == __file__ for each in caught)
    return [str(each.message) for each in caught]


def test_the_line_and_what_would_help():
    (text,) = announced(Branches())
    first, reason, where, hint, last = text.splitlines()
    assert first.startswith("100% of the weights to hash are in the model that can't be traced.")
    assert reason.strip().startswith(
        "the whole model (100.0% of the generated weights): its forward branches on a value"
    )
    function = f"tests/test_opaque_parts.py:{is_positive.__code__.co_firstlineno + 1} in is_positive"
    assert where.strip() == f"at {function}, called by {line_of(Branches, 2)}"
    assert hint.strip().startswith("to have it traced: choose with torch.where")
    assert "capture='modules'" in last


@pytest.mark.parametrize(("width", "is_announced"), [(16, True), (127, True), (128, False), (500, False)])
def test_more_than_a_fifth(width, is_announced):
    """The block has 512 weights, which is a fifth of the model's where the other layer has 128 outputs."""
    texts = announced(BranchesInside(width))
    assert len(texts) == is_announced
    assert all(" in 1 submodule that can't be traced" in each and "  block (" in each for each in texts)


def test_each_reason_once_the_largest_share_first():
    (text,) = announced(DrawsAndBranches())
    assert " in 3 submodules that " in text
    assert [line.split()[0] for line in text.splitlines() if "weights): " in line] == ["blocks.0", "blocks.1"]
    assert f"at {line_of(DrawsInPython, 1)}" in text


@pytest.mark.parametrize("options", [{"capture": "modules"}, {"exclude": "block"}])
def test_not_where_it_was_asked_for_or_nothing_is_hashed(options):
    assert announced(BranchesInside(16), **options) == []


def test_attention_of_torch_is_no_reason():
    model = Attention()
    assert announced(model) == []
    assert fxhash.summary(fxhash.transform(model, 0.9)).opaque_parts


def test_the_summary_says_where():
    with pytest.warns(fxhash.OpaqueWarning):
        gm = fxhash.transform(BranchesInside(16), 0.9)
    summary = fxhash.summary(gm)
    (part,) = summary.opaque_parts
    assert part.where.endswith(line_of(Branches, 2))
    assert f"    at {part.where}\n    to have it traced: {part.hint}" in summary.table


class SharesLayers(BranchesInside):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.other = Branches()
        self.other.a, self.other.b = self.block.a, self.block.b

    def forward(self, x):
        return self.after(self.other(self.block(x)))


def test_weights_that_two_submodules_share_count_once():
    assert len(announced(SharesLayers(127))) == 1
    assert announced(SharesLayers(128)) == []


def test_no_warning_for_what_is_traced():
    class Traced(Two):
        def forward(self, x):
            return self.b(F.relu(self.a(x)))

    assert announced(Traced(), example_inputs=(torch.randn(2, 16),)) == []
