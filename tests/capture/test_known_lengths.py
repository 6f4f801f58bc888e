"""Iterating over values of a graph whose number is known, and einops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxhash
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.table = nn.Parameter(torch.randn(3, 12))
        self.function = function

    def forward(self, x):
        return self.function(self, self.linear(x))


def over_chunks(self, h):
    return sum(part * 2 for part in h.chunk(3, dim=-1))


def over_chunks_by_map(self, h):
    q, k, v = map(torch.relu, torch.chunk(h, 3, -1))
    return q + k * v


def over_a_list_of_sizes(self, h):
    return torch.cat([part + 1 for part in h.split([4, 8], dim=-1)], dim=-1)


def over_a_parameter(self, h):
    return sum(row * h for row in self.table)


def spread_with_another(self, h):
    q, k, v = (h[..., :6], *h.chunk(2, dim=-1))
    return q + k * v


def over_a_spread_shape(self, h):
    b, n, d, heads = *h.shape, 3
    return h.reshape(b, n, heads, d // heads)


def over_the_end_of_a_shape(self, h):
    *_, n, d = h.shape
    return h.reshape(-1, n * d)


def over_the_start_of_a_spread_shape(self, h):
    b, *_, heads = *h.shape, 3
    return h.reshape(b, -1, heads)


def over_a_grid(self, h):
    return sum(part.sum() for part in torch.meshgrid(h[0, 0], h[1, 0], indexing="ij"))


def counted(self, h):
    return h * len(h.chunk(2, -1))


@pytest.mark.parametrize(
    "function",
    [
        *(over_chunks, over_chunks_by_map, over_a_list_of_sizes, over_a_parameter, spread_with_another),
        *(over_a_spread_shape, over_the_end_of_a_shape, over_the_start_of_a_spread_shape, over_a_grid, counted),
    ],
)
def test_iterating_is_traced(function):
    model, x = Applies(function), torch.randn(2, 5, 12)
    traced = fxhash.trace(model)
    assert reasons(traced) == {}
    assert_same_outputs(model, traced, x)
    gm = fxhash.transform(model, 0.9, seed=0)
    assert_same_outputs(gm, fxhash.lower_for_deploy(gm), x)


def the_rest_is_used(self, h):
    *rest, d = h.shape
    return h.reshape(*rest, 2, d // 2)


def over_rows(self, h):
    return sum(row for row in h)


def over_parts_of_one_size(self, h):
    return sum(part for part in h.split(4, dim=-1))


@pytest.mark.parametrize("function", [the_rest_is_used, over_rows, over_parts_of_one_size])
def test_an_unknown_number_is_refused(function):
    model, x = Applies(function), torch.randn(2, 5, 12)
    traced = fxhash.trace(model)
    assert list(reasons(traced).values()) == ["its forward iterates over a value that comes from its input"]
    assert_same_outputs(model, traced, x)


class ChunksInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return sum(self.linear(part) for part in x.chunk(3))


def test_fewer_chunks_than_in_the_trace_are_an_error():
    traced = fxhash.trace(ChunksInput())
    with pytest.raises(fxhash.TransformError, match="traced with 3 values where there are 2 now"):
        traced(torch.randn(2, 4))


def test_einops(tmp_path, monkeypatch):
    pytest.importorskip("einops")
    source = """
import einops
from einops import pack, rearrange, reduce, repeat, unpack
from einops.layers.torch import Rearrange
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(Rearrange("b c (h p) -> b h (p c)", p=4), nn.Linear(12, 12))
        self.qkv = nn.Linear(12, 36)

    def forward(self, x):
        h = self.embed(x)
        q, k, v = map(lambda t: rearrange(t, "b n (h d) -> b h n d", h=3), self.qkv(h).chunk(3, dim=-1))
        attention = einops.einsum(q, k, "b h i d, b h j d -> b h i j").softmax(-1)
        h = rearrange(attention @ v, "b h n d -> b n (h d)")
        packed, shapes = pack([h, h], "b * d")
        first, second = unpack(packed, shapes, "b * d")
        return reduce(first + second, "b n d -> b d", "mean") + repeat(h[0, 0], "d -> b d", b=x.shape[0])
"""
    (tmp_path / "with_einops.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import with_einops

    model, x = with_einops.Model(), torch.randn(2, 3, 16)
    traced = fxhash.trace(model)
    assert reasons(traced) == {}
    assert_same_outputs(model, traced, x)
    assert with_einops.rearrange.__module__ == "einops.einops"
    assert not hasattr(with_einops.rearrange, "__wrapped__")
