"""The arithmetic against the definition, element by element."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fxhash.smh.arithmetic import generate, rows_for, separable
from fxhash.smh.statistics import PrincipalRows, StandardDeviation, nearest_pointwise, principal_kernels

sizes = st.integers(1, 5)


def by_definition(left, right, element):
    """One element of the slice, as the paper writes it: the dot product of a row of left and a column of right."""
    row, column = divmod(element, right.shape[1])
    return sum(left[row, k].item() * right[k, column].item() for k in range(left.shape[1]))


@given(st.lists(sizes, max_size=4), st.integers(1, 20), st.integers(1, 4), st.integers(0, 2), st.floats(-3, 3))
def test_equals_the_definition(shape, cols, rank, unused_rank, shift):
    numel = torch.Size(shape).numel()
    left = torch.randn(rows_for(numel, cols), rank, dtype=torch.float64)
    right = torch.randn(rank + unused_rank, cols, dtype=torch.float64)
    weight = generate(left, right, shape, torch.tensor(shift, dtype=torch.float64))
    expected = torch.tensor([shift + by_definition(left, right, i) for i in range(numel)], dtype=torch.float64)
    assert weight.shape == torch.Size(shape)
    assert weight.is_contiguous()
    torch.testing.assert_close(weight.flatten(), expected)


@given(st.integers(1, 500), st.integers(1, 60))
def test_rows_hold_all_elements_and_none_is_empty(numel, cols):
    assert (rows_for(numel, cols) - 1) * cols < numel <= rows_for(numel, cols) * cols


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.data())
def test_standard_deviation_is_that_of_the_materialized_product(rows, cols, rank, data):
    assume(rows * cols >= 2)
    numel = data.draw(st.integers(max((rows - 1) * cols + 1, 2), rows * cols))
    left, right = torch.randn(rows, rank), torch.randn(rank + 1, cols)
    product = (left.double() @ right[:rank].double()).flatten()[:numel]
    assert StandardDeviation(right)(left, numel) == pytest.approx(product.std().item(), rel=1e-6, abs=1e-9)


@given(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data(), st.integers(0, 2**31))
def test_principal_rows_are_a_truncated_svd_of_the_stack(cols, heights, data, seed):
    """The error of each rank, and of its first ones alone, is what the singular values that are left out say."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(rows, cols, generator=generator, dtype=torch.float64) for rows in heights]
    principal = PrincipalRows(cols, "cpu")
    for matrix in matrices:
        principal.add(matrix)
    stack = torch.cat(matrices)
    rank = data.draw(st.integers(1, min(cols, len(stack))))
    right, to_left = principal.factor(rank)
    squares = torch.linalg.svdvals(stack).square()
    for first in range(1, rank + 1):
        error = (stack - stack @ to_left[:, :first] @ right[:first]).square().sum()
        assert error.item() == pytest.approx(squares[first:].sum().item(), rel=1e-6, abs=1e-6 * squares.sum().item())
    if squares[rank - 1] > 1e-4 * squares[0]:
        sizes = [(stack @ to_left).square().mean(0), right.square().mean(1)]
        assert torch.allclose(*sizes, rtol=1e-5)


def test_ranks_that_the_matrices_do_not_use_can_be_learnt():
    principal = PrincipalRows(3, "cpu")
    principal.add(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]))
    right, to_left = principal.factor(3)
    assert right.isfinite().all()
    assert to_left.isfinite().all()
    assert (right.norm(dim=1) > 0).all()


@st.composite
def separable_convolutions(draw):
    """Entries of `W`, kernels and the shape of a weight."""
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    out, channels, count = draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(1, 4))
    torch.manual_seed(draw(st.integers(0, 1000)))
    pointwise = torch.randn(out, channels * count, dtype=torch.float64)
    return pointwise, torch.randn(count, math.prod(kernel), dtype=torch.float64), (out, channels, *kernel)


@given(separable_convolutions())
def test_separable_weights_are_sums_of_products(case):
    pointwise, kernels, shape = case
    weight = separable(pointwise, kernels, shape)
    assert weight.shape == shape
    assert weight.is_contiguous()
    for o in range(shape[0]):
        for i in range(shape[1]):
            expected = sum(pointwise[o, i * len(kernels) + k] * kernel for k, kernel in enumerate(kernels))
            torch.testing.assert_close(weight[o, i].flatten(), expected)


@given(separable_convolutions())
def test_the_nearest_separable_weight_to_one_that_is_separable_is_itself(case):
    pointwise, kernels, shape = case
    assume(kernels.shape[0] <= kernels.shape[1])
    weight = separable(pointwise, kernels, shape)
    found = principal_kernels(weight, len(kernels))
    torch.testing.assert_close(found @ found.T / kernels.shape[1], torch.eye(len(kernels), dtype=torch.float64))
    torch.testing.assert_close(separable(nearest_pointwise(weight, found), found, shape), weight, rtol=1e-5, atol=1e-5)
