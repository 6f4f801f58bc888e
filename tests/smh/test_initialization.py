"""Initialization of weights at the ends of their type's range: finite, or refused."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxhash
from tests.helpers import uncalibrated

pytestmark = uncalibrated
every_init = pytest.mark.parametrize("init", ["random", "pretrained"])
FILLS = {
    "uniform": lambda shape: torch.rand(shape, dtype=torch.float64) * 2 - 1,
    "normal": lambda shape: torch.randn(shape, dtype=torch.float64).clamp(-4, 4) / 4,
    "constant": lambda shape: torch.ones(shape, dtype=torch.float64),
    "of large mean": lambda shape: 1 - 1e-2 * torch.rand(shape, dtype=torch.float64),
    "one large": lambda shape: torch.zeros(shape, dtype=torch.float64).index_put_(
        tuple(torch.zeros(len(shape), 1, dtype=torch.long)), torch.ones(1, dtype=torch.float64)
    ),
}


def model_of(fill: str, size: float, dtype: torch.dtype, is_convolution: bool = False) -> nn.Module:
    """A model with a weight whose largest absolute value is `size`."""
    torch.manual_seed(0)
    first = nn.Conv2d(32, 32, 3, dtype=dtype) if is_convolution else nn.Linear(32, 32, dtype=dtype)
    with torch.no_grad():
        first.weight.copy_(FILLS[fill](first.weight.shape) * size)
    return nn.Sequential(first, nn.Linear(32, 400, dtype=dtype))


def is_finite(gm: torch.fx.GraphModule) -> bool:
    generator = gm.smh_generator
    weights = [generator(parameter.fqn) for parameter in generator.plan.hashed]
    return all(bool(tensor.isfinite().all()) for tensor in (*generator.parameters(), *weights))


@every_init
@pytest.mark.parametrize(
    ("size", "dtype"), [(3e38, torch.float32), (3e38, torch.bfloat16), (6e4, torch.float16), (1e308, torch.float64)]
)
def test_weights_that_would_overflow_are_refused(size, dtype, init):
    message = (
        r"parameter '0\.weight' has values of about .* too large for (float|bfloat)\d\d: .* exclude='0\\\\\.weight'"
    )
    with pytest.raises(fxhash.TransformError, match=message):
        fxhash.transform(model_of("uniform", size, dtype), 0.5, init=init)
    fxhash.transform(model_of("uniform", size, dtype), 0.99, init=init, exclude=r"0\.weight")


@every_init
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, init):
    model = model_of("uniform", 1.0, torch.float32)
    with torch.no_grad():
        model[0].weight[3, 4] = value
    with pytest.raises(fxhash.TransformError, match=r"'0\.weight' holds NaN or infinity"):
        fxhash.transform(model, 0.5, init=init)


@given(
    fill=st.sampled_from(sorted(FILLS)),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    share=st.floats(0, 1),
    is_convolution=st.booleans(),
    init=st.sampled_from(["random", "pretrained"]),
)
def test_weights_of_any_size_are_finite_or_refused(fill, dtype, share, is_convolution, init):
    """From the least number that a type has to the largest: never NaN without a word."""
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    size = (torch.tensor(least, dtype=torch.double) ** (1 - share) * torch.finfo(dtype).max ** share).item()
    model = model_of(fill, size, dtype, is_convolution)
    may_be_refused = size > min(1e-3 * torch.finfo(dtype).max, 1e130)
    with pytest.raises(fxhash.TransformError, match="too large") if may_be_refused else nullcontext():
        assert is_finite(fxhash.transform(model, 0.3, init=init, seed=0))
        if may_be_refused:
            raise fxhash.TransformError("not too large after all")


@every_init
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_whose_deviation_the_type_can_not_hold_are_initialized_to_zero(dtype, init):
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    gm = fxhash.transform(model_of("one large", least, dtype), 0.3, init=init)
    assert is_finite(gm)
    assert gm.smh_generator("0.weight").abs().max() <= 100 * least
