"""What tests of threads and processes share: threads at work, a trace that stands still, and what a thread can see."""

from __future__ import annotations

import builtins
import contextlib
import math
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxhash
from tests.capture.reasons import reasons
from tests.models import MODELS

# Seconds after which a thread or process hangs: generous, since nothing waits for it where all is well.
HANGS = 60.0


def doubled(x: Tensor) -> Tensor:
    """Recorded as one node where a model is traced; everywhere else a plain function."""
    assert type(x) is Tensor
    return x * 2


fx.wrap("doubled")
DOUBLED = doubled


class Stop:
    """A place at which a trace stands still until it may go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.may_go_on.wait(HANGS)


# Where the forward of a `Stopping` stops. They are no part of the model, since a trace works on a copy.
STOPS: dict[str, Stop] = {}


class Stopping(nn.Module):
    """Stands still in the middle of its forward, which calls a wrapped function before and after."""

    def __init__(self, stop: str = "only") -> None:
        super().__init__()
        self.stop = stop
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = doubled(self.first(x))
        if self.stop in STOPS:
            STOPS[self.stop]()
        return self.second(doubled(x))


def threads(count: int) -> ThreadPoolExecutor:
    """Threads that compute as the first one does: how many more torch starts is up to each thread."""
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def stopped(model: Stopping) -> Iterator[Future[fx.GraphModule]]:
    """For the time of the block, the trace of a model stands still in another thread; gives its transform."""
    STOPS[model.stop] = stop = Stop()
    try:
        with threads(1) as other:
            transform = other.submit(transformed, model)
            try:
                assert stop.reached.wait(HANGS)
                yield transform
            finally:
                stop.may_go_on.set()
            transform.result(HANGS)
    finally:
        del STOPS[model.stop]


def transformed(model: nn.Module) -> fx.GraphModule:
    """Its transform, which takes nothing from the random numbers that all threads share."""
    return fxhash.transform(model, 0.9, seed=0)


def example(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One of the models of `tests.models` in eval mode, and its inputs."""
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    return build().eval(), inputs()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of its parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Both have the same tensors, bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def assert_same_transform(one: fx.GraphModule, other: fx.GraphModule) -> None:
    """Both have the same graph, the same opaque submodules for the same reasons, and the same values, bit for bit."""
    assert one.code == other.code
    assert reasons(one) == reasons(other)
    assert_same_state(state_of(one), state_of(other))


# Python 3.13 loads what it hashes a seed with when it is first given a string.
random.Random("")


def visible() -> dict[str, Any]:
    """What a thread can see of the process, and of its own state."""
    found: dict[str, Any] = {
        "trace function": sys.gettrace(),
        "trace function of new threads": threading.gettrace(),
        "profile function": sys.getprofile(),
        "limit of recursion": sys.getrecursionlimit(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "type of autocast": torch.get_autocast_dtype("cpu"),
        "cache of autocast": torch.is_autocast_cache_enabled(),
        "default type": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "threads of torch": torch.get_num_threads(),
        "modes of functions": torch._C._len_torch_function_stack(),
        "modes of operators": torch._C._len_torch_dispatch_stack(),
        "random numbers of torch": torch.get_rng_state().numpy().tobytes(),
        "random numbers of Python": random.getstate(),
        "random numbers of numpy": repr(np.random.get_state()),
        "filters of warnings": list(warnings.filters),
    }
    for owner in (
        *(nn.Module, nn.Linear, nn.Sequential, nn.Parameter, Tensor, torch.autocast, torch.no_grad, torch.enable_grad),
        *(torch.autograd.graph.saved_tensors_hooks, torch.inference_mode, fx.Tracer, fx.Proxy, fx.Graph),
        *(torch, F, torch.utils.checkpoint, random, np.random, builtins, contextlib, math, warnings),
    ):
        found.update({f"{owner.__name__}.{name}": id(value) for name, value in vars(owner).items()})
    return found


def assert_visible(before: dict[str, Any], but: str = "nothing") -> None:
    """A thread sees what it saw before; names of torch that were not loaded yet may have come.

    Args:
        before: what `visible` gave before.
        but: the beginning of names that may have changed.
    """
    now = visible()
    changed = [name for name in before if name not in now or now[name] != before[name]]
    changed = [name for name in changed if not name.startswith(but)]
    assert not changed, changed


def draw() -> tuple[int, int, int]:
    """A number of each of the generators that all threads share."""
    of_torch = int(torch.empty((), dtype=torch.int64).random_())
    return of_torch, random.getrandbits(64), int(np.random.randint(2**63 - 1, dtype=np.int64))


def seed_everything() -> None:
    """The generators that all threads share begin anew."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


@contextmanager
def busy(*jobs: Callable[[], Any]) -> Iterator[list[list[Any]]]:
    """For the time of the block, threads do jobs again and again, one each; gives what each returned so far.

    Each has done its job before the block begins, and does it once more when the block has ended.
    """
    results: list[list[Any]] = [[] for _ in jobs]
    errors: list[BaseException] = []
    begun, done = threading.Barrier(len(jobs) + 1), threading.Event()

    def work(job: Callable[[], Any], result: list[Any]) -> None:
        torch.set_num_threads(1)
        try:
            result.append(job())
            begun.wait(HANGS)
            while not done.is_set():
                result.append(job())
            result.append(job())
        except BaseException as error:
            errors.append(error)
            begun.abort()

    workers = [threading.Thread(target=work, args=each, daemon=True) for each in zip(jobs, results, strict=True)]
    for worker in workers:
        worker.start()
    try:
        begun.wait(HANGS)
        yield results
    except threading.BrokenBarrierError:
        pass
    finally:
        done.set()
        for worker in workers:
            worker.join(HANGS)
    if errors:
        raise errors[0]
    assert not any(worker.is_alive() for worker in workers), "a thread hangs"
