"""Ranks by what they save: gains are differences of losses, no other ranks of as many parameters save more."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from fxhash.smh.factored_weight import FactoredWeight
from fxhash.smh.planning import highest_rank, plan_parameters, with_ranks
from fxhash.smh.ranks import choose_ranks, rank_gains, ranks_within
from fxhash.smh.weight_target import WeightTarget
from tests.smh.test_fitting import COLS, random_right, weights
from tests.strategies import aspects, parameter_descriptions

ALIGNED = st.sampled_from([36, 24, 12, 6, 4, 3])


@given(weights(ALIGNED))
def test_gains_are_what_the_loss_falls_by(drawn):
    right = random_right()
    for weight in drawn:
        losses = [weight.target.loss(weight.target.values)]
        for rank in range(1, len(right) + 1):
            fewer = FactoredWeight(weight.target, COLS, rank)
            fewer.solve_left_(right)
            losses.append(fewer.loss(right))
        gains = rank_gains(weight, right)
        expected = -torch.tensor(losses, dtype=torch.float64).diff()
        torch.testing.assert_close(gains, expected, atol=1e-6 * losses[0], rtol=1e-3)


def test_a_weight_without_importance_gains_nothing():
    zeros = WeightTarget(torch.zeros(4, COLS, dtype=torch.float64)).relative()
    assert not rank_gains(FactoredWeight(zeros, COLS, 1), random_right()).any()


@st.composite
def gains_and_rows(draw: st.DrawFn, falling: bool) -> tuple[list[list[float]], list[int]]:
    """Gains of a few ranks of a few weights, and their rows."""
    count = draw(st.integers(1, 3))
    gain = st.floats(0, 100)
    gains = [draw(st.lists(gain, min_size=1, max_size=5)) for _ in range(count)]
    rows = draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))
    return [sorted(each, reverse=True) if falling else each for each in gains], rows


def parameters_of(rows, ranks, more_rows):
    return sum(count * rank + more for count, rank, more in zip(rows, ranks, more_rows, strict=True))


@given(gains_and_rows(falling=False), st.integers(1, 4), st.integers(0, 60))
def test_the_budget_is_used_and_never_exceeded(case, cols, further):
    gains, rows = case
    budget = sum(rows) + cols + further
    chosen = choose_ranks(gains, rows, cols, budget, 1)
    used = chosen.of_right * cols + parameters_of(rows, chosen.ranks, chosen.more_rows)
    assert used == chosen.parameters <= budget
    for each, count, rank, more in zip(gains, rows, chosen.ranks, chosen.more_rows, strict=True):
        assert 1 <= rank <= len(each)
        assert 0 <= more < count
        assert rank + bool(more) <= min(len(each), chosen.of_right)
    everything = sum(len(each) * count for each, count in zip(gains, rows, strict=True))
    most = max(len(each) for each in gains)
    assert used == min(budget, everything + most * cols) or budget - used < cols


@given(gains_and_rows(falling=True), st.integers(1, 4), st.integers(0, 60))
def test_where_gains_fall_no_other_ranks_save_more(case, cols, further):
    gains, rows = case
    budget = sum(rows) + cols + further
    chosen = choose_ranks(gains, rows, cols, budget, 1)
    for of_right in range(1, max(map(len, gains)) + 1):
        if sum(rows) + of_right * cols <= budget:
            within = ranks_within(gains, rows, cols, budget, of_right)
            assert within.parameters < chosen.parameters or within.saved <= chosen.saved + 1e-9
            for ranks in itertools.product(*[range(1, min(len(each), of_right) + 1) for each in gains]):
                if max(ranks) == of_right and of_right * cols + parameters_of(rows, ranks, [0] * len(rows)) <= budget:
                    saved = sum(sum(each[1:rank]) for each, rank in zip(gains, ranks, strict=True))
                    assert saved <= within.saved + 1e-9


@given(parameter_descriptions(), st.floats(0.3, 0.9), aspects, st.integers(0, 99))
def test_a_plan_with_other_ranks_has_as_many_parameters(described, compress, aspect, seed):
    try:
        plan = plan_parameters(described, compress, aspect)
    except ValueError:
        return
    torch.manual_seed(seed)
    gains = [torch.rand(highest_rank(plan, parameter)).tolist() for parameter in plan.hashed]
    rows = [plan.rows_of(parameter) for parameter in plan.hashed]
    chosen = choose_ranks(gains, rows, plan.layout.cols, plan.factor_parameters, plan.layout.rank)
    other = with_ranks(plan, chosen)
    assert other.factor_parameters == chosen.parameters
    assert other.trainable_after == plan.trainable_after
    assert [parameter.fqn for parameter in other.hashed] == [parameter.fqn for parameter in plan.hashed]
