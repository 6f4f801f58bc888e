"""Plans: exact budgets, disjoint and covering slices, JSON round trips, and distrust of what comes from a file."""

from __future__ import annotations

import json
import math
import tracemalloc

import pytest
import torch
import torchvision
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import fxhash
from fxhash.smh.parameter_plan import ParameterPlan
from fxhash.smh.parameters import tied_groups
from fxhash.smh.plan import CompressionPlan
from fxhash.smh.planning import _budget, other_plans, plan_parameters
from fxhash.smh.selection import describe_parameters
from tests.strategies import aspects, fractions, parameter_descriptions


def all_convolutions(described):
    return [parameter.fqn for parameter in described if len(parameter.shape) > 2]


def plan_or_smallest(described, compress, aspect):
    convolutions = all_convolutions(described)
    try:
        return plan_parameters(described, compress, aspect, convolutions=convolutions)
    except fxhash.BudgetError as error:
        assume(error.smallest_compress <= 1)
        return plan_parameters(described, error.smallest_compress, aspect, convolutions=convolutions)


@given(parameter_descriptions(), fractions, aspects)
def test_never_exceeds_the_budget(described, compress, aspect):
    plan = plan_or_smallest(described, compress, aspect)
    assert plan.trainable_after / plan.trainable_before <= plan.compress
    left = sum(plan.rows_of(parameter) * parameter.rank + parameter.more_rows for parameter in plan.hashed)
    kernels = sum(parameter.kernels * math.prod(parameter.shape[2:]) for parameter in plan.hashed)
    counted = left + plan.layout.cols * plan.layout.rank + kernels + len(plan.hashed) + plan.dense_trainable
    assert plan.trainable_after == counted


@given(parameter_descriptions(), fractions, aspects)
def test_slices_are_disjoint_and_cover_every_row(described, compress, aspect):
    plan = plan_or_smallest(described, compress, aspect)
    owner = [None] * plan.layout.rows
    for parameter in plan.hashed:
        rows = range(parameter.first_row, parameter.first_row + plan.rows_of(parameter))
        entries = parameter.numel
        if parameter.kernels:
            entries = parameter.shape[0] * parameter.shape[1] * parameter.kernels
        assert (len(rows) - 1) * plan.layout.cols < entries <= len(rows) * plan.layout.cols
        for row in rows:
            assert owner[row] is None
            owner[row] = parameter.fqn
    assert None not in owner
    assert max(parameter.rank + bool(parameter.more_rows) for parameter in plan.hashed) == plan.layout.rank
    assert max(parameter.full_rank for parameter in plan.hashed) == plan.layout.rank
    assert {parameter.full_rank for parameter in plan.dense} <= {0}
    assert sum(bool(parameter.more_rows) for parameter in plan.hashed) <= 1


@given(parameter_descriptions(), fractions, aspects)
def test_smaller_parameters_have_no_lower_rank(described, compress, aspect):
    """Up to the one rank that what is left of the budget gives to some, and to their own number of entries."""
    plan = plan_or_smallest(described, compress, aspect)
    for small in plan.hashed:
        as_many_as_entries = min((small.slice_numel - 1) // plan.rows_of(small), plan.layout.rows)
        for large in plan.hashed:
            if small.slice_numel <= large.slice_numel:
                assert small.rank >= min(large.rank - 1, as_many_as_entries)


@given(parameter_descriptions(), fractions, aspects)
def test_a_row_of_right_has_many_users(described, compress, aspect):
    """Half as many as it has columns, unless all rows are fewer, some can't use more, or what was left over paid."""
    plan = plan_or_smallest(described, compress, aspect)
    for index in range(plan.layout.rank - 1):
        users = [
            plan.rows_of(parameter)
            for parameter in plan.hashed
            if parameter.rank > index
            or parameter.rank >= min((parameter.slice_numel - 1) // plan.rows_of(parameter), plan.layout.rows)
        ]
        assert sum(users) >= min(plan.layout.cols / 2, plan.layout.rows)


@given(parameter_descriptions(), fractions, aspects)
def test_json_round_trip(described, compress, aspect):
    plan = plan_or_smallest(described, compress, aspect)
    assert CompressionPlan.from_json(plan.to_json()) == plan


@given(
    st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=30),
    fractions,
    st.sampled_from([1.0, 2.0, 4.0, 16.0]),
)
def test_large_budgets_are_used(shapes, compress, aspect):
    described = [ParameterPlan(f"p{index}", shape, "float32") for index, shape in enumerate(shapes)]
    before = sum(parameter.numel for parameter in described)
    assume(int(compress * before) >= 10_000)
    plan = plan_or_smallest(described, compress, aspect)
    assert plan.trainable_after >= 0.99 * int(plan.compress * before)


@given(parameter_descriptions(), st.floats(1e-6, 0.2), aspects)
def test_budget_error_names_the_smallest_that_can(described, compress, aspect):
    options = {"aspect": aspect, "convolutions": all_convolutions(described)}
    try:
        plan_parameters(described, compress, **options)
    except fxhash.BudgetError as error:
        smallest = error.smallest_compress
    else:
        assume(False)
    if smallest > 1:
        with pytest.raises(fxhash.BudgetError, match="too small to compress"):
            plan_parameters(described, 1.0, **options)
        return
    assert plan_parameters(described, smallest, **options).layout.rank == 1
    with pytest.raises(fxhash.BudgetError):
        plan_parameters(described, smallest * (1 - 1e-9), **options)


RESNET_LIKE = [
    ParameterPlan(f"conv{index}", shape, "float32")
    for index, shape in enumerate([(64, 3, 3, 3), *[(64, 64, 3, 3)] * 4, *[(128, 128, 3, 3)] * 4, (256, 128, 1, 1)])
]


@pytest.mark.parametrize(("compress", "kernels"), [(0.02, 2), (0.1, 2), (0.2, 3), (0.3, 4), (0.4, 0), (0.9, 0)])
def test_convolutions_are_separable_where_the_budget_is_small(compress, kernels):
    """With fewer kernels the smaller it is; not those of few channels or one position, or that other layers use."""
    named = [parameter.fqn for parameter in RESNET_LIKE if parameter.fqn != "conv3"]
    plan = plan_parameters(RESNET_LIKE, compress, convolutions=named)
    assert [parameter.kernels for parameter in plan.hashed] == [0, *[kernels] * 2, 0, *[kernels] * 5, 0]
    assert not any(parameter.kernels for parameter in plan_parameters(RESNET_LIKE, compress).hashed)


def test_separable_convolutions_allow_smaller_models():
    with pytest.raises(fxhash.BudgetError) as regular:
        plan_parameters(RESNET_LIKE, 0.0001)
    with pytest.raises(fxhash.BudgetError) as separable:
        plan_parameters(RESNET_LIKE, 0.0001, convolutions=all_convolutions(RESNET_LIKE))
    assert separable.value.smallest_compress < 0.6 * regular.value.smallest_compress


def test_budget_error_says_what_to_do():
    described = [ParameterPlan("fc.weight", (100, 100), "float32")]
    with pytest.raises(fxhash.BudgetError) as caught:
        plan_parameters(described, 0.01, aspect=1)
    assert str(caught.value) == (
        "compress=0.01 of 10,000 trainable parameters allows 100, but the least that this model can have is 201: "
        "0 stay dense, 1 scales, and 200 in factors of rank 1. Use compress=0.0201 or more, or hash more of it with "
        "include=..."
    )


@pytest.mark.parametrize("compress", [0, -0.1, 1.0001, 10, float("nan"), float("inf"), "0.1", None, True])
def test_compress_out_of_range(compress):
    with pytest.raises(fxhash.PlanError, match="is not a fraction"):
        fxhash.transform(nn.Linear(30, 30), compress)


@pytest.mark.parametrize("aspect", [0, -1, float("nan"), float("inf"), "tall"])
def test_aspect_out_of_range(aspect):
    with pytest.raises(fxhash.PlanError, match="aspect="):
        fxhash.transform(nn.Linear(30, 30), 0.5, aspect=aspect)


def test_square_and_tall_layouts():
    described = [ParameterPlan("fc.weight", (1000, 1000), "float32")]
    square, tall = plan_parameters(described, 0.1, aspect=1), plan_parameters(described, 0.1, aspect=16)
    assert 0.7 < square.layout.rows / square.layout.cols < 1.4
    assert 11 < tall.layout.rows / tall.layout.cols < 23
    assert tall.layout.rank < square.layout.rank / 1.9


def test_columns_are_row_aligned_with_the_layers():
    """Rows then belong to one output channel, or hold several of them."""
    shapes = [(64, 3, 7, 7), *[(128, 64, 3, 3)] * 4, *[(256, 128, 3, 3)] * 4, (10, 256)]
    described = [ParameterPlan(f"p{index}", shape, "float32") for index, shape in enumerate(shapes)]
    for aspect in (1, 4, 16, 64):
        layout = plan_parameters(described, 0.1, aspect).layout
        assert 576 % layout.cols == 0 or layout.cols % 576 == 0
        assert 0.5 < layout.rows / layout.cols / aspect < 2


def test_a_billion_parameters_take_little_memory():
    with torch.device("meta"):
        layers = [nn.Linear(8192, 8192) for _ in range(17)]
    model = nn.Sequential(*layers)
    tracemalloc.start()
    gm = fxhash.transform(model, 0.01)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    plan = gm.smh_generator.plan
    assert plan.trainable_before > 1_100_000_000
    assert 0.0099 < plan.trainable_after / plan.trainable_before <= 0.01
    assert all(parameter.is_meta for parameter in gm.parameters())
    assert peak < 50e6


def test_prints_as_a_table():
    model = nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100))
    text = str(fxhash.transform(model, 0.2).smh_generator.plan)
    first_line, *_ = text.splitlines()
    assert first_line.split() == ["parameter", "shape", "treatment", "rows", "of", "W", "rank"]
    assert "0.weight   100x100  hashed" in text
    assert "1.bias     100      dense (fewer than two dimensions)" in text
    assert "trainable before" in text


def damaged(**changes):
    plan = plan_parameters([ParameterPlan("a", (10, 10), "float32"), ParameterPlan("b", (9, 9), "float32")], 0.9)
    fields = json.loads(plan.to_json())
    for path, value in changes.items():
        *parents, name = path.split("__")
        target = fields
        for parent in parents:
            target = target[int(parent) if parent.isdigit() else parent]
        target[name] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        "1" * 10_000,
        damaged(format=2),
        damaged(compress=2),
        damaged(compress=float("nan")),
        damaged(aspect="1"),
        damaged(layout__rank=0),
        damaged(layout__rows=10**30),
        damaged(layout__cols=True),
        damaged(layout__more=1),
        damaged(parameters=[]),
        damaged(parameters="abc"),
        damaged(parameters__0__fqn=""),
        damaged(parameters__0__fqn=7),
        damaged(parameters__1__fqn="a"),
        damaged(parameters__0__shape=[-10, -10]),
        damaged(parameters__0__shape=[10.0, 10]),
        damaged(parameters__0__shape=None),
        damaged(parameters__0__dtype="int64"),
        damaged(parameters__0__dtype="nn"),
        damaged(parameters__1__first_row=3),
        damaged(parameters__1__first_row=None),
        damaged(parameters__0__more_rows=10**9),
        damaged(parameters__0__more_rows=-1),
        damaged(parameters__0__more_rows="1"),
        damaged(parameters__0__rank=0),
        damaged(parameters__0__kernels=1),
        damaged(parameters__0__kernels=-1),
        damaged(parameters__0__rank=100),
        damaged(parameters__0__rank=None),
        damaged(parameters__1__dense_because=5),
        damaged(parameters__1__unknown=5),
        damaged(parameters__1__aliases=["a"]),
        damaged(unused=3),
        damaged(unused=[3]),
        damaged(layout__rank=10**6),
    ],
)
def test_a_hostile_plan_is_refused(text):
    with pytest.raises(fxhash.PlanError):
        CompressionPlan.from_json(text)


def test_a_dense_parameter_with_a_place_is_refused():
    with pytest.raises(fxhash.PlanError, match="'b' is dense, but has a place in W"):
        CompressionPlan.from_json(damaged(parameters__1__dense_because="excluded"))


@given(st.data())
def test_no_text_crashes_the_reader(data):
    text = damaged()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    altered = text[:start] + data.draw(st.text(max_size=8)) + text[end:]
    try:
        plan = CompressionPlan.from_json(altered)
    except fxhash.PlanError:
        return
    assert CompressionPlan.from_json(plan.to_json()) == plan


class Mixture(nn.Module):
    """One parameter of each kind that is treated in its own way."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, 40))
        self.bias = nn.Parameter(torch.randn(40))
        self.frozen = nn.Parameter(torch.randn(40, 40), requires_grad=False)
        self.integer = nn.Parameter(torch.ones(4, 4, dtype=torch.int64), requires_grad=False)
        self.complex = nn.Parameter(torch.randn(40, 40, dtype=torch.complex64))
        self.empty = nn.Parameter(torch.randn(0, 40))

    def forward(self, x):
        x = (x @ self.weight + self.bias) @ self.frozen
        return x * self.integer.sum() + (x @ self.complex).real + self.empty.sum()


def test_what_stays_dense_by_default():
    described = {parameter.fqn: parameter for parameter in describe_parameters(Mixture())}
    assert {fqn: parameter.dense_because for fqn, parameter in described.items()} == {
        "weight": "",
        "bias": "fewer than two dimensions",
        "frozen": "frozen",
        "integer": "type int64",
        "complex": "type complex64",
        "empty": "empty",
    }


def test_dense_ones_keep_their_values_and_frozen_ones_are_not_counted():
    model = Mixture()
    gm = fxhash.transform(model, 0.9)
    plan = gm.smh_generator.plan
    assert plan.trainable_before == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan.frozen == 1600 + 16
    parameters = dict(gm.named_parameters())
    for name in ("bias", "frozen", "integer", "complex", "empty"):
        assert torch.equal(parameters[name], getattr(model, name))
        assert parameters[name].requires_grad == getattr(model, name).requires_grad


def hashed_names(**selection):
    model = nn.ModuleDict({"stem": nn.Linear(8, 8), "head": nn.Linear(8, 8)})
    return [parameter.fqn for parameter in describe_parameters(model, **selection) if parameter.hashed]


def test_include_and_exclude():
    assert hashed_names() == ["stem.weight", "head.weight"]
    assert hashed_names(include="stem") == ["stem.weight", "stem.bias"]
    assert hashed_names(include=[r"bias$", r"^head"]) == ["stem.bias", "head.weight", "head.bias"]
    assert hashed_names(exclude="head") == ["stem.weight"]
    assert hashed_names(include=lambda fqn, parameter: parameter.dim() == 1) == ["stem.bias", "head.bias"]
    assert hashed_names(include="stem", exclude=lambda fqn, _: fqn.endswith("bias")) == ["stem.weight"]


@pytest.mark.parametrize("selector", ["(", ["a", "["], 3, [3]])
def test_malformed_selectors(selector):
    with pytest.raises(fxhash.PlanError, match=r"include=.* (is not a regular expression|must be)"):
        fxhash.transform(nn.Linear(30, 30), 0.5, include=selector)


def test_nothing_left_to_hash():
    with pytest.raises(fxhash.PlanError, match=r"no parameter is left to hash: all 2 stay dense \(excluded\)"):
        fxhash.transform(nn.Linear(30, 30), 0.5, exclude=".")
    with pytest.raises(fxhash.PlanError, match="has no parameters that its forward uses"):
        fxhash.transform(nn.ReLU(), 0.5)


def test_budget_is_exact_where_floating_point_is_not():
    assert _budget(0.29, 100) == 29
    assert _budget(0.09999999999999999, 10) == 0
    # The next smaller number than 5 / 6, six times which is 5 after rounding.
    assert _budget(0.8333333333333333, 6) == 4


def test_frozen_parameters_are_not_charged():
    model = nn.Sequential(nn.Linear(64, 640).requires_grad_(False), nn.Linear(640, 64))
    plan = fxhash.transform(model, 0.1).smh_generator.plan
    assert plan.trainable_before == 640 * 64 + 64
    assert plan.trainable_after >= 0.95 * 0.1 * plan.trainable_before


class TwoNames(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second


@pytest.mark.parametrize("other", ["transposed", "next", "frozen"])
def test_only_the_same_view_of_a_storage_is_tied(other):
    storage = torch.randn(2, 16, 16)
    first = nn.Parameter(storage[0])
    second = {
        "transposed": nn.Parameter(storage[0].t()),
        "next": nn.Parameter(storage[1]),
        "frozen": nn.Parameter(storage[0], requires_grad=False),
    }[other]
    assert [names for names, _ in tied_groups(TwoNames(first, second))] == [["first"], ["second"]]
    assert [names for names, _ in tied_groups(TwoNames(first, nn.Parameter(storage[0])))] == [["first", "second"]]


def test_any_of_its_names_selects_a_tied_parameter():
    weight = nn.Parameter(torch.randn(16, 16))
    (described,) = describe_parameters(TwoNames(weight, weight), exclude="^second")
    assert described.dense_because == "excluded"
    (described,) = describe_parameters(TwoNames(weight, weight), include="^second")
    assert described.hashed


@pytest.mark.parametrize("seed", [2.5, "a"])
def test_a_seed_that_is_none(seed):
    with pytest.raises(fxhash.PlanError, match="is neither a whole number of 64 bits nor a torch"):
        fxhash.transform(nn.Linear(30, 30), 0.5, seed=seed)


def test_no_row_is_tried_that_is_as_long_as_a_long_table():
    """What is fitted to inputs takes memory with the square of it; the embedding of positions has 151,296 entries."""
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    plan = plan_parameters(describe_parameters(model), 0.1)
    assert {each.layout.cols for each in (plan, *other_plans(plan, (), None))} == {3072, 768}
