"""Moments of inputs: streamed as at once, of unfolded convolutions as of linear layers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fxhash.smh import calibration
from fxhash.smh.calibration import MomentStore, block_sizes, moments, unfolded


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.sampled_from([1, 2, 3, 6]))
def test_streamed_moments_are_those_of_all_inputs_at_once(sizes, blocks):
    torch.manual_seed(0)
    pieces = [torch.randn(size, 6, dtype=torch.float64) for size in sizes]
    found = moments(pieces, blocks)
    total = moments([pieces[0]], blocks)
    for piece in pieces[1:]:
        total = total + moments([piece], blocks)
    everything = torch.cat(pieces)
    gram = everything.T @ everything / len(everything)
    size = 6 // blocks
    expected = torch.stack([gram[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(blocks)])
    for each in (found, total):
        torch.testing.assert_close(each.gram, expected)
        torch.testing.assert_close(each.sums, everything.sum(0))
        assert each.count == len(everything)


@given(
    st.integers(1, 3),
    st.lists(st.tuples(*[st.integers(1, 3)] * 2, st.integers(0, 2), st.integers(1, 2)), min_size=1, max_size=3),
    st.sampled_from([1, 2]),
    st.sampled_from([20, 2**24]),
)
def test_a_convolution_is_a_linear_layer_of_its_unfolded_inputs(batch, space, groups, piece):
    kernel, stride, padding, dilation = zip(*space, strict=True)
    x = torch.randn(batch, 4, *[8, 6, 5][: len(space)], dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64)
    before, calibration._PIECE = calibration._PIECE, piece
    try:
        inputs = torch.cat(list(unfolded(x, kernel, stride, padding, dilation, groups)))
    finally:
        calibration._PIECE = before
    convolution = [F.conv1d, F.conv2d, F.conv3d][len(space) - 1]
    expected = convolution(x, weight, None, stride, padding, dilation, groups)
    squares = torch.zeros((), dtype=torch.float64)
    for group in weight.flatten(1).chunk(groups):
        # Each group of channels reads inputs of its own; all are told apart by nothing but their order here.
        squares = squares + (inputs @ group.T).square().sum()
    if groups == 1:
        torch.testing.assert_close(squares, expected.square().sum())
    assert len(inputs) == expected[:, 0].numel() * groups


def test_layers_that_read_the_same_share_their_moments_until_they_do_not():
    one, other = moments([torch.ones(2, 3)]), moments([torch.ones(5, 3)])
    store = MomentStore()
    store.add(["q", "k", "v"], one)
    store.add(["out"], one)
    assert len(store.readers) == 2
    assert store["q"] is store["v"]
    store.add(["q", "k"], other)
    assert [store[name].count for name in ("q", "k", "v", "out")] == [7, 7, 2, 2]
    assert store["q"] is store["k"]
    store.add(["v", "new"], other)
    assert [store[name].count for name in ("q", "v", "new")] == [7, 7, 5]
    assert "unknown" not in store


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 10_000))
def test_blocks_are_as_large_as_the_memory_allows(lengths, most):
    sizes = block_sizes(lengths, most)
    assert set(sizes) == set(lengths)
    assert all(length % size == 0 for length, size in sizes.items())
    entries = sum(length * sizes[length] for length in lengths)
    assert entries <= max(most, sum(lengths))
    assert sum(length**2 for length in lengths) > most or all(sizes[length] == length for length in lengths)
