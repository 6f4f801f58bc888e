"""What a layer's errors matter to a model: known for linear layers, and bounded for all."""

from __future__ import annotations

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fxhash.smh.calibration import InputMoments, MomentStore
from fxhash.smh.importance import by_gradients, by_outputs, whitening
from fxhash.smh.weight_target import WeightTarget


def targets(seed: int, count: int) -> list[WeightTarget]:
    torch.manual_seed(seed)
    inputs = torch.randn(20, 6, dtype=torch.float64)
    gram = (inputs.T @ inputs).unsqueeze(0)
    values = [torch.randn(3 + index, 6, dtype=torch.float64) for index in range(count)]
    return [WeightTarget(each, gram if index % 2 else None).relative() for index, each in enumerate(values)]


@given(st.integers(0, 99), st.lists(st.floats(0, 1e6), min_size=1, max_size=4))
@example(1, [5e-324])
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


@given(st.integers(1, 5), st.sampled_from([(1, 6), (2, 3), (6, 1)]), st.integers(0, 99))
def test_independent_inputs_and_gradients_are_told_apart(out, blocks, seed):
    """Of many inputs, however correlated, each with a gradient by the outputs that doesn't depend on it."""
    torch.manual_seed(seed)
    inputs = torch.randn(4000, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    inputs = inputs.view(-1, *blocks)
    by_output = torch.randn(len(inputs), out, dtype=torch.float64)
    store = MomentStore()
    store.add(["weight"], InputMoments(torch.einsum("nbi,nbj->bij", inputs, inputs), inputs.flatten(1).sum(0), 4000))
    white = whitening(["weight", "table"], store)
    assert white["table"] is None
    found = sum(
        by_outputs(gradients.unsqueeze(1) * each.flatten(), white["weight"])
        for gradients, each in zip(by_output[:300], inputs[:300], strict=True)
    )
    expected = by_output[:300].square().mean(1).sum().item()
    assert 0.6 * expected < found < 1.4 * expected
