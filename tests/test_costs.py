"""The cost model counts what the operations do, and its choice is the cheapest."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fxhash.costs import Costs, layer_costs, lookup_costs
from fxhash.factored import conv_in_turn, linear_in_turn
from fxhash.product import generate
from tests.test_factored import factors

sizes = st.integers(1, 40)
counts = st.integers(1, 10_000)


def multiply_adds(function, *args):
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops() // 2


@given(factors(sizes, sizes), st.integers(1, 5))
def test_costs_of_a_linear_layer_are_those_of_its_operations(case, positions):
    shape, left, right = case
    costs = layer_costs(shape, left.shape[1], right.shape[1])
    x = torch.randn(positions, shape[1], dtype=torch.float64)
    # The last row may hold padding, which is computed with the others.
    padding = left.shape[0] * right.shape[1] - costs.dense
    in_turn = multiply_adds(linear_in_turn, x, left, right, shape)
    assert 0 <= in_turn - positions * costs.in_turn <= positions * left.shape[1] * max(padding // shape[1], 0)
    assert multiply_adds(generate, left, right, shape) == costs.generate + padding * left.shape[1]
    assert multiply_adds(torch.nn.functional.linear, x, generate(left, right, shape)) == positions * costs.dense


@given(factors(sizes, st.sampled_from([1, 2, 4, 8]), st.just(1), st.just(1)))
def test_costs_of_a_convolution_are_those_of_its_operations(case):
    shape, left, right = case
    x = torch.randn(2, shape[1], 3, 3, dtype=torch.float64)
    costs = layer_costs(shape, left.shape[1], right.shape[1])
    padding = left.shape[0] * right.shape[1] - costs.dense
    in_turn = multiply_adds(conv_in_turn, x, left, right, shape)
    assert 0 <= in_turn - 18 * costs.in_turn <= 18 * left.shape[1] * max(padding // shape[1], 0)


@given(counts, counts, counts, st.integers(1, 10_000))
def test_the_method_is_the_least_work(generating, dense, in_turn, positions):
    costs = Costs(generating, dense, in_turn)
    work = {"in turn": positions * in_turn, "generate": generating + positions * dense}
    chosen = costs.method
    if chosen == "by size":
        chosen = "in turn" if positions <= costs.most_positions else "generate"
    assert work[chosen] == min(work.values())


def test_where_multiplying_in_turn_is_impossible_the_weight_is_generated():
    assert Costs(10, 10).method == "generate"


def test_keeping_saves_generating_or_the_extra_work_of_a_position():
    assert Costs(600, 30, 50).saved_by_keeping("by size") == 600
    assert Costs(600, 30).saved_by_keeping("generate") == 600
    assert Costs(600, 30, 24).saved_by_keeping("in turn") == 6
    assert Costs(600, 30, 20).saved_by_keeping("in turn") == 0
    assert lookup_costs((1000, 64), rank=3).saved_by_keeping("in turn") == 1.5 * 3 * 64
