"""The arithmetic against the definition, element by element."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from fxhash.product import generate_run, rows_of_run, split_product, standard_normal_factors

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


def by_definition(left, right, element):
    """Element `element` of `W`, as the paper writes it: the dot product of a row of left and a column of right."""
    row, column = divmod(element, right.shape[1])
    return sum(left[row, k].item() * right[k, column].item() for k in range(left.shape[1]))


@given(shapes, st.data())
def test_both_paths_equal_the_definition(shape, data):
    rows, cols, rank = shape
    left = torch.randn(rows, rank, dtype=torch.float64)
    right = torch.randn(rank, cols, dtype=torch.float64)
    used = data.draw(st.integers(1, rows * cols))
    cuts = sorted(data.draw(st.sets(st.integers(1, used), max_size=5)) | {0, used})
    sizes = [end - start for start, end in itertools.pairwise(cuts)]
    runs = split_product(left, right, sizes)
    assert len(runs) == len(sizes)
    for start, size, run in zip(cuts, sizes, runs, strict=False):
        expected = torch.tensor([by_definition(left, right, start + i) for i in range(size)], dtype=torch.float64)
        torch.testing.assert_close(run, expected)
        torch.testing.assert_close(generate_run(left, right, start, size), expected)


@given(st.integers(0, 200), st.integers(1, 200), st.integers(1, 50))
def test_rows_are_those_that_the_run_touches(offset, numel, cols):
    first, end = rows_of_run(offset, numel, cols)
    touched = {element // cols for element in range(offset, offset + numel)}
    assert touched == set(range(first, end))


def test_product_of_the_initial_factors_has_variance_one():
    for rank in (1, 5, 60):
        left, right = standard_normal_factors(900, 700, rank, torch.Generator().manual_seed(0))
        product = left @ right
        assert abs(product.mean().item()) < 0.05
        assert abs(product.var().item() - 1) < 0.1
