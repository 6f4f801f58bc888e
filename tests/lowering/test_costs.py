"""The cost model counts what the operations do, and its choice is the cheapest."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fxhash.lowering.costs import Costs, layer_costs, lookup_costs
from fxhash.lowering.functional import factored_conv, factored_linear
from fxhash.lowering.method import Method
from fxhash.smh.arithmetic import generate
from tests.lowering.test_functional import factors

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
    factored = multiply_adds(factored_linear, x, left, right, shape)
    assert 0 <= factored - positions * costs.factored <= positions * left.shape[1] * max(padding // shape[1], 0)
    assert multiply_adds(generate, left, right, shape) == costs.generate + padding * left.shape[1]
    assert multiply_adds(torch.nn.functional.linear, x, generate(left, right, shape)) == positions * costs.dense


@given(factors(sizes, st.sampled_from([1, 2, 4, 8]), st.just(1), st.just(1)))
def test_costs_of_a_convolution_are_those_of_its_operations(case):
    shape, left, right = case
    x = torch.randn(2, shape[1], 3, 3, dtype=torch.float64)
    costs = layer_costs(shape, left.shape[1], right.shape[1])
    padding = left.shape[0] * right.shape[1] - costs.dense
    factored = multiply_adds(factored_conv, x, left, right, shape)
    assert 0 <= factored - 18 * costs.factored <= 18 * left.shape[1] * max(padding // shape[1], 0)


@given(counts, counts, counts, st.integers(1, 10_000))
def test_the_method_is_the_least_work(generating, dense, factored, positions):
    costs = Costs(generating, dense, factored)
    work = {"factored": positions * factored, "generate": generating + positions * dense}
    chosen = costs.method
    if chosen == "adaptive":
        chosen = "factored" if positions <= costs.max_positions else "generate"
    assert work[chosen] == min(work.values())


def test_where_factors_can_not_be_applied_the_weight_is_generated():
    assert Costs(10, 10).method == "generate"


def test_caching_saves_generating_or_the_extra_work_of_a_position():
    assert Costs(600, 30, 50).saved_by_caching(Method("adaptive"), 1.5) == 600
    assert Costs(600, 30).saved_by_caching(Method("generate"), 1.5) == 600
    assert Costs(600, 30, 24).saved_by_caching(Method("factored"), 1.5) == 6
    assert Costs(600, 30, 20).saved_by_caching(Method("factored"), 1.5) == 0
    assert lookup_costs((1000, 64), rank=3).saved_by_caching(Method("factored"), 1.5) == 1.5 * 3 * 64
