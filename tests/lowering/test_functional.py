"""Applying the factors equals the layer with the materialized weight."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from fxhash.lowering.functional import factored_conv, factored_linear
from fxhash.lowering.lookup import factored_embedding, factored_embeddings
from fxhash.smh.arithmetic import generate, is_row_aligned, rows_for

sizes = st.integers(1, 6)
# Detectors call layers with no box at all.
batches = st.integers(0, 6)


@st.composite
def factors(draw, *shape_strategies):
    """A shape, columns that are aligned with it, and factors in double precision."""
    shape = tuple(draw(strategy) for strategy in shape_strategies)
    channel, kernel = math.prod(shape[1:]), math.prod(shape[2:])
    fitting = [cols for cols in range(1, 4 * channel + 1) if is_row_aligned(shape, cols)]
    cols = draw(st.sampled_from(fitting))
    assert cols % channel == 0 or (channel % cols == 0 and cols % kernel == 0)
    rank, unused = draw(st.integers(1, 4)), draw(st.integers(0, 1))
    left = torch.randn(rows_for(math.prod(shape), cols), rank, dtype=torch.float64)
    return shape, left, torch.randn(rank + unused, cols, dtype=torch.float64)


def weight_of(shape, left, right):
    return generate(left, right, shape)


@given(factors(sizes, st.integers(1, 12)), st.lists(batches, max_size=2), st.booleans())
def test_linear(case, batch, with_bias):
    shape, left, right = case
    x = torch.randn(*batch, shape[1], dtype=torch.float64)
    bias = torch.randn(shape[0], dtype=torch.float64) if with_bias else None
    actual = factored_linear(x, left, right, shape, bias)
    torch.testing.assert_close(actual, F.linear(x, weight_of(shape, left, right), bias))


@given(st.data(), st.integers(1, 3), st.booleans(), st.booleans())
def test_convolutions(data, dimensions, with_bias, batched):
    case = factors(sizes, st.sampled_from([1, 2, 3, 4, 6, 8]), *[st.integers(1, 3)] * dimensions)
    shape, left, right = data.draw(case)
    options = {
        "stride": data.draw(st.integers(1, 2)),
        "padding": data.draw(st.integers(0, 1)),
        "dilation": data.draw(st.integers(1, 2)),
    }
    batch = [data.draw(batches)] if batched else []
    x = torch.randn(*batch, shape[1], *[7 - dimensions] * dimensions, dtype=torch.float64)
    assume(all(7 - dimensions + 2 * options["padding"] > options["dilation"] * (k - 1) for k in shape[2:]))
    bias = torch.randn(shape[0], dtype=torch.float64) if with_bias else None
    convolution = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dimensions]
    actual = factored_conv(x, left, right, shape, bias, **options)
    torch.testing.assert_close(actual, convolution(x, weight_of(shape, left, right), bias, **options))


@given(factors(st.integers(1, 20), sizes), st.lists(batches, max_size=2), st.data())
def test_embedding(case, index_shape, data):
    shape, left, right = case
    indices = torch.randint(0, shape[0], index_shape)
    actual = factored_embedding(indices, left, right, shape)
    torch.testing.assert_close(actual, F.embedding(indices, weight_of(shape, left, right)))


@given(factors(st.integers(1, 20), sizes), st.booleans())
def test_an_index_beyond_the_table_is_refused(case, is_joined):
    """Also one that the last row of `W` has entries for, which are of no row of the table."""
    shape, left, right = case
    for index in (shape[0], -1):
        indices = torch.tensor([0, index])
        look_up = partial(factored_embedding, indices, left, right, shape)
        if is_joined and right.shape[1] > shape[1]:
            look_up = partial(factored_embeddings, right, [indices * 0, indices], [left, left], [shape, shape])
        with pytest.raises(IndexError, match="out of range"):
            look_up()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_indices_under_vmap_are_not_read():
    shape, left, right = (5, 2), torch.randn(3, 2), torch.randn(2, 4)
    indices = torch.tensor([[0, 4], [3, 1]])
    actual = torch.vmap(lambda each: factored_embedding(each, left, right, shape))(indices)
    torch.testing.assert_close(actual, F.embedding(indices, weight_of(shape, left, right)))


@given(factors(st.integers(1, 20), sizes))
def test_embedding_of_many_in_pieces(case):
    shape, left, right = case
    indices = torch.randint(0, shape[0], (50,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxhash.lowering.lookup._LARGEST_INTERMEDIATE", 64)
        patch.setattr("fxhash.lowering.lookup._FEW_PER_ROW", 2)
        actual = factored_embedding(indices, left, right, shape)
        trained = factored_embedding(indices, left.clone().requires_grad_(), right, shape)
    torch.testing.assert_close(actual, F.embedding(indices, weight_of(shape, left, right)))
    torch.testing.assert_close(trained, actual)
