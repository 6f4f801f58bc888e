"""Factors in 8 and 4 bits: exact where they must be, near where they can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fxhash
from fxhash.smh.factor_bits import FactorBits, dequantize, fake_quantized, for_each_entry, quantize

every_bits = st.builds(FactorBits, st.sampled_from([8, 4]), st.sampled_from([None, 1, 2, 5, 16, 1000]))
# From below the smallest step to near the largest number.
sizes = st.sampled_from([0.0, 1e-45, 1e-40, 1e-38, 1e-30, 1e-3, 1.0, 1e20, 1e38])


@st.composite
def some_rows(draw: st.DrawFn) -> torch.Tensor:
    """Rows of one size each, some of them zero."""
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    size = torch.tensor(draw(st.lists(sizes, min_size=shape[0], max_size=shape[0])))
    rows = (torch.randn(shape, generator=random).clamp(-3, 3) * size[:, None]) * (
        torch.rand(shape, generator=random) < 0.8
    )
    return rows.double() if draw(st.booleans()) else rows


@given(rows=some_rows(), bits=every_bits)
def test_integers_are_symmetric_and_steps_are_numbers_of_bfloat16(rows, bits):
    integers, steps = quantize(rows, bits)
    assert integers.dtype == steps.dtype == torch.float32
    assert integers.shape == rows.shape
    assert steps.shape == (rows.shape[0], bits.groups(rows.shape[1]))
    assert integers.abs().max() <= bits.largest
    assert torch.equal(integers, integers.round())
    assert torch.equal(steps, steps.bfloat16().float())
    assert (steps > 0).all()


@given(rows=some_rows(), bits=every_bits)
def test_each_value_is_within_half_a_step(rows, bits):
    integers, steps = quantize(rows, bits)
    off = (dequantize(integers, steps, bits).double() - rows.double()).abs()
    assert (off <= 0.5001 * for_each_entry(steps, bits, rows.shape[1]).double()).all()
    reach = rows.double().abs().amax(1, keepdim=True) / bits.largest
    assert (for_each_entry(steps, bits, rows.shape[1]) <= reach.clamp(min=1.2e-38) * (1 + 2**-8)).all()


@given(rows=some_rows(), bits=every_bits)
def test_what_was_quantized_stays_what_it_is(rows, bits):
    once = fake_quantized(rows, bits)
    assert once.dtype == rows.dtype
    assert torch.equal(fake_quantized(once, bits), once)
    (first, steps), (second, same_steps) = quantize(rows, bits), quantize(once, bits)
    assert torch.equal(first, second)
    # Of zeros, any step will do.
    used = dequantize(torch.ones_like(first), steps, bits)[first != 0]
    assert torch.equal(used, dequantize(torch.ones_like(first), same_steps, bits)[first != 0])


@given(rows=some_rows(), bits=every_bits)
def test_gradients_pass_straight_through(rows, bits):
    rows = rows.requires_grad_()
    given = torch.arange(rows.numel(), dtype=rows.dtype).view_as(rows)
    (gradient,) = torch.autograd.grad(fake_quantized(rows, bits), rows, given)
    assert torch.equal(gradient, given)


def test_an_outlier_spoils_its_group_alone():
    rows = torch.tensor([[100.0, 0.1, 1.0, 0.9], [0.1, 0.2, 0.3, 0.4]])
    quantized = fake_quantized(rows, FactorBits(4, group=2))
    assert quantized[0, 1] == 0
    assert (quantized[0, 2:] - rows[0, 2:]).abs().max() < 0.08
    assert fake_quantized(rows, FactorBits(4))[0].tolist()[1:] == [0, 0, 0]
    assert (quantized[1] - rows[1]).abs().max() < 0.03


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((3,), "bits=3 is no number of bits that factors can have: give 8 or 4"),
        ((8.0,), r"bits=8\.0 is no number"),
        ((True,), "bits=True is no number"),
        (("8",), "bits='8' is no number"),
        ((8, 0), "group=0 is no number of entries"),
        ((8, -4), "group=-4 is no number"),
        ((8, 2.5), r"group=2\.5 is no number"),
        ((8, True), "group=True is no number"),
        ((8, "32"), "group='32' is no number"),
    ],
)
def test_what_can_not_be(given, message):
    with pytest.raises(fxhash.PlanError, match=message):
        FactorBits(*given)
