"""The contract of every pass: input untouched, result clean, truth about `modified`, nothing to do twice."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import fxhash
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.factor_store import build_factor_store
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.passes import (
    LOWERING,
    TRAINING,
    graph_pass,
    hash_parameters,
    restore_parameters,
    restore_training_flags,
)
from tests.helpers import generator_of, may_be_opaque, run, smallest_transform
from tests.models import MODELS, FunctionalDropout, ResidualConvNet
from tests.passes.test_join_lookups import Tables

pytestmark = may_be_opaque

# Tables that one call may look up are a matter of few passes.
KINDS = {**MODELS, "Tables": (Tables, lambda: (torch.randint(0, 200, (4, 3)),))}


def transformed(name):
    torch.manual_seed(0)
    return smallest_transform(KINDS[name][0](), 0.5, seed=0).eval().requires_grad_(False)


@cache
def partly_lowered(count, name, budget):
    """A model that the first few passes have run over, its plan and what it stores."""
    if count:
        gm, plan, store = partly_lowered(count - 1, name, budget)
        return LOWERING[count - 1](gm, plan, store).graph_module, plan, store
    gm = transformed(name)
    plan = plan_lowering(gm, budget=budget, options=LoweringOptions(DeviceProfile(depthwise_cost=0.0, call_cost=0.0)))
    return gm, plan, build_factor_store(gm, generator_of(gm), plan)


def lowering_case(index, name, budget):
    """A pass of lowering, and a model that all passes before it have run over."""
    gm, plan, store = partly_lowered(index, name, budget)
    return lambda graph_module: LOWERING[index](graph_module, plan, store), gm


@cache
def partly_lowered_for_training(count, name):
    """The same for training."""
    if count:
        gm, plan = partly_lowered_for_training(count - 1, name)
        return TRAINING[count - 1](gm, plan, generator_of(gm)).graph_module, plan
    torch.manual_seed(0)
    gm = smallest_transform(KINDS[name][0](), 0.5, seed=0)
    return gm, plan_lowering(gm, options=LoweringOptions(DeviceProfile(depthwise_product_cost=-1e6), for_training=True))


def training_case(index, name):
    gm, plan = partly_lowered_for_training(index, name)
    return lambda graph_module: TRAINING[index](graph_module, plan, generator_of(gm)), gm


def hash_again(gm):
    return hash_parameters(gm, fxhash.transform(FunctionalDropout(), 0.9, seed=0).smh_generator)


# Models that between them give every pass something to do.
TRAITS = (
    "ConvCalledTwice",
    "TiedEmbedding",
    "SharedStorage",
    "SeparableConvolutions",
    "ResidualConvNet",
    "BranchesOnInput",
    "LSTM",
    "Attention",
    "MixedTypes",
    "Tables",
)
CACHED = ("SeparableConvolutions", "BranchesOnInput")
# Name of the pass and the case -> how to make the pass and its input.
CASES = {
    "hash_parameters": lambda: (hash_again, fxhash.trace(FunctionalDropout())),
    "restore_training_flags": lambda: (restore_training_flags, torch.fx.symbolic_trace(FunctionalDropout())),
    **{f"restore_parameters {name}": lambda name=name: (restore_parameters, transformed(name)) for name in TRAITS},
    **{
        f"{each.__name__} {name} {budget}": lambda index=index, name=name, budget=budget: lowering_case(
            index, name, budget
        )
        for index, each in enumerate(LOWERING)
        for name in TRAITS
        for budget in ((0, 10**9) if name in CACHED else (0,))
    },
    **{
        f"{each.__name__} {name} training": lambda index=index, name=name: training_case(index, name)
        for index, each in enumerate(TRAINING)
        for name in TRAITS
    },
}
every_case = pytest.mark.parametrize("name", CASES)


def state_of(gm):
    modules = [(path, module, type(module), dict(vars(module))) for path, module in gm.named_modules()]
    tensors = {key: (id(tensor), tensor.clone()) for key, tensor in gm.state_dict(keep_vars=True).items()}
    nodes = [(node, node.target, node.args, dict(node.kwargs), dict(node.meta)) for node in gm.graph.nodes]
    return modules, tensors, nodes, gm.code


@every_case
def test_leaves_its_input_untouched(name):
    rewrite, gm = CASES[name]()
    modules, tensors, nodes, code = state_of(gm)
    rewrite(gm)
    gm.graph.lint()
    modules_after, tensors_after, nodes_after, code_after = state_of(gm)
    assert nodes_after == nodes
    assert code_after == code
    assert [each[:3] for each in modules_after] == [each[:3] for each in modules]
    for (_, _, _, attributes), (path, _, _, after) in zip(modules, modules_after, strict=True):
        assert attributes.keys() == after.keys(), path
        assert all(after[key] is value for key, value in attributes.items() if key.startswith("_")), path
    assert list(tensors_after) == list(tensors)
    for key, (identity, value) in tensors.items():
        assert tensors_after[key][0] == identity
        assert torch.equal(tensors_after[key][1], value)


@every_case
def test_tells_the_truth_about_what_it_modified_and_does_nothing_twice(name):
    rewrite, gm = CASES[name]()
    first = rewrite(gm)
    if first.modified:
        assert first.graph_module is not gm
        assert first.graph_module.code != gm.code
    else:
        assert first.graph_module is gm
    second = rewrite(first.graph_module)
    assert not second.modified
    assert second.graph_module is first.graph_module


def test_every_pass_modifies_one_of_the_models():
    modified = {}
    for name, case in CASES.items():
        rewrite, gm = case()
        passed = name.split(" ")[0]
        modified[passed] = modified.get(passed, False) or rewrite(gm).modified
    assert all(modified.values()), modified


@every_case
def test_result_is_clean(name):
    rewrite, gm = CASES[name]()
    result = rewrite(gm).graph_module
    result.graph.lint()
    used = {str(node.target) for node in result.graph.nodes if node.op in ("get_attr", "call_module")}
    for held, _ in result.named_parameters():
        assert any(held == target or held.startswith(target + ".") for target in used), held
    for node in result.graph.nodes:
        if node.op == "get_attr":
            assert node.users


@pytest.mark.parametrize("name", TRAITS)
def test_restored_parameters_give_equal_outputs_and_so_does_the_input_afterwards(name):
    gm = transformed(name)
    inputs = KINDS[name][1]()
    before = run(gm, *inputs)
    restored = restore_parameters(gm).graph_module
    for each in (restored, gm):
        for one, other in zip(before, run(each, *inputs), strict=True):
            torch.testing.assert_close(one, other)


def test_a_pass_may_not_change_the_inputs():
    @graph_pass
    def drop_input(gm):
        node = next(iter(gm.graph.nodes))
        node.target = "renamed"
        return True

    with pytest.raises(AssertionError, match="a pass changed the inputs"):
        drop_input(fxhash.trace(ResidualConvNet()))


def test_names_that_are_taken_are_avoided():
    class Taken(nn.Module):
        def __init__(self):
            super().__init__()
            self.smh_generator = nn.Linear(30, 30)
            self.smh_factors = nn.Linear(30, 30)
            self.training_flag = nn.Linear(30, 30)

        def forward(self, x):
            x = nn.functional.dropout(x, 0.5, self.training)
            return self.training_flag(self.smh_factors(self.smh_generator(x)))

    gm = fxhash.transform(Taken(), 0.5, seed=0)
    assert isinstance(gm.smh_generator_, fxhash.SMHGenerator)
    x = torch.randn(2, 30)
    torch.testing.assert_close(fxhash.lower_for_deploy(gm)(x), gm.eval()(x))
