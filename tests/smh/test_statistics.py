"""Statistics of weights against float64."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from fxhash.smh.statistics import largest_magnitude, std_and_mean


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3).filter(lambda shape: math.prod(shape) > 1),
    exponent=st.integers(-30, 30),
    offset=st.sampled_from([0.0, 0.1, 1.0, 10.0, -100.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_std_and_mean(shape, exponent, offset, dtype, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = ((values + offset) * 10.0**exponent).to(dtype)
    std, mean = std_and_mean(values)
    exact = values.double()
    size = exact.abs().max().item()
    assert std == pytest.approx(exact.std().item(), rel=1e-5, abs=1e-6 * size)
    assert mean == pytest.approx(exact.mean().item(), abs=1e-6 * size)
    assert largest_magnitude(values) == size


def test_a_constant_does_not_deviate():
    assert std_and_mean(torch.full((3, 5), 0.1)) == (0.0, pytest.approx(0.1))


def test_what_is_no_number_is_told():
    values = torch.tensor([[1.0, math.nan]])
    assert math.isnan(std_and_mean(values)[0])
    assert math.isnan(largest_magnitude(values))
