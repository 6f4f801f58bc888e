"""The contract of every pass: input untouched, result clean, truth about `modified`, nothing to do twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxhash
from fxhash.passes import graph_pass, hash_parameters, lower_weights, restore_parameters, restore_training_flags
from tests.models import FunctionalDropout, ResidualConvNet


def hash_again(gm):
    return hash_parameters(gm, fxhash.transform(FunctionalDropout(), 0.9, seed=0).smh_generator)


PASSES = {
    "hash_parameters": (hash_again, lambda: fxhash.trace(FunctionalDropout())),
    "lower_weights": (lower_weights, lambda: fxhash.transform(FunctionalDropout(), 0.9, seed=0)),
    "restore_parameters": (restore_parameters, lambda: fxhash.transform(FunctionalDropout(), 0.9, seed=0)),
    "restore_training_flags": (restore_training_flags, lambda: torch.fx.symbolic_trace(FunctionalDropout())),
}

every_pass = pytest.mark.parametrize("name", PASSES)


@every_pass
def test_leaves_its_input_untouched(name):
    run, build = PASSES[name]
    gm = build()
    nodes, code = list(gm.graph.nodes), gm.code
    state = {key: (id(tensor), tensor.clone()) for key, tensor in gm.state_dict(keep_vars=True).items()}
    run(gm)
    gm.graph.lint()
    assert list(gm.graph.nodes) == nodes
    assert gm.code == code
    after = gm.state_dict(keep_vars=True)
    assert list(after) == list(state)
    for key, (identity, value) in state.items():
        assert id(after[key]) == identity
        assert torch.equal(after[key], value)


@every_pass
def test_a_second_run_modifies_nothing(name):
    run, build = PASSES[name]
    first = run(build())
    assert first.modified
    second = run(first.graph_module)
    assert not second.modified
    assert second.graph_module is first.graph_module


@every_pass
def test_result_holds_nothing_that_its_graph_does_not_use(name):
    run, build = PASSES[name]
    result = run(build()).graph_module
    result.graph.lint()
    used = {str(node.target) for node in result.graph.nodes if node.op in ("get_attr", "call_module")}
    for held, _ in result.named_parameters():
        assert any(held == target or held.startswith(target + ".") for target in used), held
    for node in result.graph.nodes:
        if node.op == "get_attr":
            assert node.users


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
            self.training_flag = nn.Linear(30, 30)

        def forward(self, x):
            x = nn.functional.dropout(x, 0.5, self.training)
            return self.training_flag(self.smh_generator(x))

    gm = fxhash.transform(Taken(), 0.5, seed=0)
    assert isinstance(gm.smh_generator_, fxhash.SMHGenerator)
    x = torch.randn(2, 30)
    torch.testing.assert_close(fxhash.lower_for_deploy(gm)(x), gm.eval()(x))
