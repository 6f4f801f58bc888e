"""What a layer's errors matter to a model: known for linear layers, and bounded for all."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fxhash.smh.importance import by_gradients, mean_square
from fxhash.smh.weight_target import WeightTarget


def targets(seed: int, count: int) -> list[WeightTarget]:
    torch.manual_seed(seed)
    inputs = torch.randn(20, 6, dtype=torch.float64)
    gram = (inputs.T @ inputs).unsqueeze(0)
    values = [torch.randn(3 + index, 6, dtype=torch.float64) for index in range(count)]
    return [WeightTarget(each, gram if index % 2 else None).relative() for index, each in enumerate(values)]


@given(st.integers(0, 99), st.lists(st.floats(0, 1e6), min_size=1, max_size=4))
def test_zeros_lose_as_many_as_there_are_rows_and_no_weight_is_lost(seed, gradients):
    drawn = targets(seed, len(gradients))
    found = by_gradients(drawn, gradients)
    rows = sum(len(target.values) for target in drawn)
    lost = [target.loss(target.values) for target in found]
    assert rows * (1 - 1e-9) <= sum(lost) <= rows * 1.01 * (1 + 1e-9)
    assert all(loss >= len(target.values) * 0.01 * (1 - 1e-9) for loss, target in zip(lost, drawn, strict=True))
    for gradient, target, other in zip(gradients, found, drawn, strict=True):
        if target.importance > 0.011 * other.importance:
            # In proportion to the gradients, where these are not nearly zero.
            ratio = gradient / gradients[0] if gradients[0] else None
            if ratio is not None and found[0].importance > 0.011 * drawn[0].importance and sum(gradients) > 1e-9:
                assert abs(target.importance - ratio * found[0].importance) <= 1e-6 * target.importance


def test_without_any_gradient_relative_errors_count():
    drawn = targets(0, 3)
    assert by_gradients(drawn, [0.0, 0.0, 0.0]) == drawn


def test_a_weight_that_is_zero_does_not_count():
    zeros = WeightTarget(torch.zeros(3, 6, dtype=torch.float64)).relative()
    one, other = by_gradients([zeros, *targets(0, 1)], [5.0, 1.0])
    assert one.importance == 0
    assert other.importance > 0


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_independent_inputs_and_gradients_are_told_apart(out, length, seed):
    torch.manual_seed(seed)
    by_outputs, inputs = torch.randn(out, dtype=torch.float64), torch.randn(length, dtype=torch.float64) + 3
    gradient = by_outputs.unsqueeze(1) * inputs
    expected = by_outputs.square().mean().item()
    assert abs(mean_square(gradient, inputs.square()) - expected) <= 1e-9 * expected
