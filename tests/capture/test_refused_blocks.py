"""Blocks that a graph would forget are refused in the thread that traces, and in no other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fxhash
from fxhash.capture.refused_blocks import refusing_blocks
from fxhash.capture.untraceable import UntraceableError
from tests.capture.reasons import reasons


def test_autocast_blocks_are_not_forgotten():
    class Autocast(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.linear(x)

    model = Autocast()
    traced = fxhash.trace(model)
    assert "switches autocast on or off" in reasons(traced)["opaque_part"]
    assert traced(torch.randn(2, 16)).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fxhash.trace(nn.Linear(3, 3)) is not None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_block_that_checkpoints_goes_on_checkpointing(use_reentrant):
    """It is opaque: a graph would forget to throw its activations away."""
    calls = []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(torch.is_grad_enabled())
            return super().forward(x).relu()

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = Counted(16, 16)

        def forward(self, x):
            return checkpoint(self.linear, x, use_reentrant=use_reentrant)

    gm = fxhash.transform(nn.Sequential(nn.Linear(16, 16), Block()), 0.9)
    assert list(reasons(gm)) == ["1.opaque_part"]
    calls.clear()
    loss = gm(torch.randn(2, 16)).sum()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2
    assert all(left.grad.any() for left in gm.smh_generator.left)


BLOCKS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "saved_tensors_hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda kept: kept),
}
every_block = pytest.mark.parametrize("name", BLOCKS)


def enters(name):
    """Whether this thread can enter a block now."""
    try:
        with BLOCKS[name]():
            assert torch.is_autocast_enabled("cpu") is (name == "autocast")
    except UntraceableError:
        return False
    return True


@every_block
def test_another_thread_enters_one_while_a_model_is_traced(name):
    entered = []

    class WaitsForAnotherThread(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            with ThreadPoolExecutor(1) as other:
                entered.append(other.submit(enters, name).result())
            return self.linear(x)

    traced = fxhash.trace(WaitsForAnotherThread())
    assert entered == [True]
    assert not reasons(traced)


@every_block
def test_two_traces_at_once(name):
    """Each refuses blocks in its own thread alone, whichever ends first, and the last one restores torch's own."""
    kind = type(BLOCKS[name]())
    own = vars(kind)["__enter__"]
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second, ThreadPoolExecutor(1) as other:

        def who_enters():
            return [thread.submit(enters, name).result() for thread in (first, second, other)]

        one, two = refusing_blocks(), refusing_blocks()
        first.submit(one.__enter__).result()
        assert who_enters() == [False, True, True]
        second.submit(two.__enter__).result()
        assert who_enters() == [False, False, True]
        first.submit(one.__exit__, None, None, None).result()
        assert who_enters() == [True, False, True]
        second.submit(two.__exit__, None, None, None).result()
        assert who_enters() == [True, True, True]
    assert vars(kind)["__enter__"] is own


@every_block
def test_a_trace_within_a_trace(name):
    own = vars(type(BLOCKS[name]()))["__enter__"]
    with refusing_blocks():
        with refusing_blocks():
            assert not enters(name)
        assert not enters(name)
    assert enters(name)
    assert vars(type(BLOCKS[name]()))["__enter__"] is own


@every_block
def test_torch_has_its_own_again_after_an_error(name):
    kind = type(BLOCKS[name]())
    own = vars(kind)["__enter__"]
    with pytest.raises(KeyboardInterrupt), refusing_blocks():
        raise KeyboardInterrupt
    assert vars(kind)["__enter__"] is own
    assert enters(name)
