"""Processes: models are sent to spawned workers, and called and made in forked ones, whatever other threads do."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxhash
from tests import concurrency
from tests.capture.reasons import reasons
from tests.concurrency import (
    DOUBLED,
    HANGS,
    STOPS,
    Stop,
    Stopping,
    example,
    stopped,
    threads,
    transformed,
)
from tests.helpers import may_be_opaque

# Traced, with opaque submodules, and with an opaque one of torch's own.
NAMES = ("ResidualConvNet", "TiedEmbedding", "BranchesOnInput", "TransformerEncoderLayer", "HookedWeightNorm")

pytestmark = [
    may_be_opaque,
    # Python's own advice, from 3.12 on: what may go wrong is what is tested here.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked here")


def digest(*models: nn.Module) -> str:
    """Of their graphs, of what is opaque and why, and of their values."""
    digest = hashlib.sha256()
    for model in models:
        digest.update(repr((getattr(model, "code", ""), reasons(model))).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any]:
    with torch.no_grad():
        return model(*inputs).tolist()


def work(name: str, gm: fx.GraphModule, lowered: fx.GraphModule) -> list[Any]:
    """What a worker does with models that it was sent: calls them, and makes the same ones."""
    torch.set_num_threads(1)
    model, inputs = example(name)
    made = transformed(model)
    lowered_here = fxhash.lower_for_deploy(gm)
    return [
        outputs(gm, inputs),
        outputs(lowered, inputs),
        outputs(fxhash.lower_for_deploy(made), inputs),
        digest(model, made, lowered_here),
    ]


def examples() -> list[tuple[str, fx.GraphModule, fx.GraphModule]]:
    found = []
    for name in NAMES:
        gm = transformed(example(name)[0])
        found.append((name, gm, fxhash.lower_for_deploy(gm)))
    return found


def test_models_are_sent_to_spawned_workers():
    given = examples()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        sent = [pool.submit(work, *each) for each in given]
        for each, result in zip(given, sent, strict=True):
            assert result.result(HANGS) == work(*each)


@needs_fork
def test_forked_workers():
    """They call what they inherit, get other models sent, and make some themselves."""
    given = examples()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        sent = [pool.submit(work, *each) for each in given]
        for each, result in zip(given, sent, strict=True):
            assert result.result(HANGS) == work(*each)


def forked(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a process that is forked now; fails if the process hangs."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        STOPS.clear()
        try:
            sender.send((True, function(*args)))
        except BaseException:
            sender.send((False, traceback.format_exc()))

    process = context.Process(target=run, daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(HANGS):
            pytest.fail("the process hangs")
        succeeded, result = receiver.recv()
        assert succeeded, result
        return result
    finally:
        process.kill()
        process.join()


@needs_fork
def test_a_fork_while_another_thread_traces():
    """The lock that the other thread holds is not held in the new process, where that thread isn't."""
    each = examples()[0]
    expected = work(*each)
    with stopped(Stopping()):
        assert forked(work, *each) == expected


def functions_that_are_replaced() -> tuple[bool, list[bool]]:
    own = concurrency.doubled is DOUBLED
    graph = transformed(Stopping("none")).graph
    return own, [node.target is DOUBLED for node in graph.nodes if "doubled" in node.name]


@needs_fork
def test_a_fork_while_wrapped_functions_are_replaced():
    with stopped(Stopping()):
        assert forked(functions_that_are_replaced) == (True, [True, True])


class Held(Stopping):
    """Opaque, and holds its parameters itself during a call, for which other threads wait."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [self.first]

    def forward(self, x: Tensor) -> Tensor:
        if self.stop in STOPS:
            STOPS[self.stop]()
        return self.layers[0](x) if x.sum() > 0 else self.second(x)


@needs_fork
def test_a_fork_while_another_thread_is_in_a_call():
    gm, x = transformed(Held()), torch.ones(4, 16)
    lowered = fxhash.lower_for_deploy(gm)
    for model in (gm, lowered):
        expected = outputs(model, (x,))
        STOPS["only"] = stop = Stop()
        try:
            with threads(1) as other:
                call = other.submit(outputs, model, (x,))
                try:
                    assert stop.reached.wait(HANGS)
                    assert forked(outputs, model, (x,)) == expected
                finally:
                    stop.may_go_on.set()
                assert call.result(HANGS) == expected
        finally:
            STOPS.clear()
