"""Threads: a transform changes nothing that another thread can see, and no other thread changes what it returns."""

from __future__ import annotations

import copy
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fxhash
from fxhash.capture.own_randomness import OwnRandomness
from tests import concurrency
from tests.capture.reasons import reasons
from tests.concurrency import (
    DOUBLED,
    HANGS,
    STOPS,
    Stop,
    Stopping,
    assert_same_state,
    assert_same_transform,
    assert_visible,
    busy,
    doubled,
    draw,
    example,
    seed_everything,
    state_of,
    stopped,
    threads,
    transformed,
    visible,
)
from tests.helpers import may_be_opaque

pytestmark = may_be_opaque

# Traced, with opaque submodules, and opaque as a whole.
NAMES = (
    "ResidualConvNet",
    "TiedEmbedding",
    "FunctionalDropout",
    "BranchesOnInput",
    "TransformerEncoderLayer",
    "RandomControlFlow",
)
LAYERS = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16)).eval()
ONES = torch.ones(4, 16)


@pytest.fixture(autouse=True)
def _short_turns():
    """Threads take turns five hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


# What other threads do; each job returns the same at each call.


def call():
    return LAYERS(ONES)


def autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        result = LAYERS[0](ONES)
    assert not torch.is_autocast_enabled("cpu")
    assert result.dtype is torch.bfloat16
    return result


def without_gradients():
    with torch.no_grad():
        assert not torch.is_grad_enabled()
        result = LAYERS(ONES)
    assert not result.requires_grad
    with torch.inference_mode():
        assert LAYERS(ONES).is_inference()
    assert torch.is_grad_enabled()
    return result


def checkpointed_gradient():
    x = ONES.clone().requires_grad_()
    # Without keeping the state of random numbers, which torch puts back for all threads.
    checkpoint(LAYERS, x, use_reentrant=False, preserve_rng_state=False).square().sum().backward()
    assert x.grad is not None
    return x.grad


def wrapped_function():
    # As code in its own module finds it: that is where it is replaced.
    return concurrency.doubled(ONES)


def caught_error():
    try:
        return ONES @ ONES
    except RuntimeError:
        return ONES


def other_parameters():
    # Of its own: other threads see the parameters that it is given.
    layers = copy.deepcopy(LAYERS)
    zeros = {name: torch.zeros_like(parameter) for name, parameter in layers.named_parameters()}
    return torch.func.functional_call(layers, zeros, (ONES,))


def trace_function():
    def own(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(own)
    try:
        result = LAYERS(ONES)
        assert sys.gettrace() is own
    finally:
        sys.settrace(before)
    return result


JOBS = (
    call,
    autocast,
    without_gradients,
    checkpointed_gradient,
    wrapped_function,
    caught_error,
    other_parameters,
    trace_function,
)


def test_a_thread_sees_nothing_of_a_trace_in_another():
    model = Stopping()
    transformed(model)
    before = visible()
    with stopped(model):
        # Functions of `math` may be replaced by such that ask for the thread, as wrapped ones are.
        assert_visible(before, but="math.")
        assert math.sqrt(2.25) == 1.5
    assert_visible(before)
    assert concurrency.doubled is DOUBLED


def flags_of_modes():
    """Whether torch believes that there is a mode of operators: one answer for all threads."""
    return {name: value for name, value in vars(_python_dispatch).items() if name.startswith("_is_in_")}


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture
def flags_before():
    """What torch believes before a test, and again after it, whatever the test leaves behind."""
    before = flags_of_modes()
    yield before
    vars(_python_dispatch).update(before)


def test_a_mode_of_another_thread_may_outlast_a_trace(flags_before):
    """Each puts back what torch believed when it began; `torch.compile` does nothing while it believes in a mode."""
    mode = Mode()
    with stopped(Stopping()):
        assert flags_of_modes() == flags_before
        mode.__enter__()
    mode.__exit__(None, None, None)
    assert flags_of_modes() == flags_before


def test_two_threads_check_models_at_once(flags_before):
    """Their checks overlap in any order."""
    with threads(1) as one, threads(1) as other:
        first, second = OwnRandomness(0), OwnRandomness(0)
        one.submit(first.__enter__).result(HANGS)
        assert flags_of_modes() == flags_before
        other.submit(second.__enter__).result(HANGS)
        numbers = one.submit(torch.rand, 3).result(HANGS)
        one.submit(first.__exit__, None, None, None).result(HANGS)
        assert torch.equal(other.submit(torch.rand, 3).result(HANGS), numbers)
        other.submit(second.__exit__, None, None, None).result(HANGS)
    assert flags_of_modes() == flags_before


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_a_thread_at_work_while_another_traces(job):
    model, expected = Stopping(), job()
    alone = transformed(model)
    with stopped(model) as transform:
        for _ in range(3):
            assert torch.equal(job(), expected)
    assert_same_transform(transform.result(), alone)
    assert reasons(alone) == {}


def test_a_thread_may_call_and_train_the_model_that_another_traces():
    model = Stopping()
    graph, x = transformed(model).code, torch.randn(4, 16)
    expected = model(x)
    stop = Stop()
    with stopped(model) as transform:
        STOPS.pop(model.stop)
        try:
            assert torch.equal(model(x), expected)
            model(x).square().sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.01 * parameter.grad
        finally:
            STOPS[model.stop] = stop
    assert transform.result().code == graph
    assert reasons(transform.result()) == {}


@pytest.mark.xfail(strict=True, reason="a change of a class in another thread counts as one of the forward")
def test_what_another_thread_changes_in_a_class_is_not_put_back():
    class Counts(Stopping):
        calls = 0

    with stopped(Counts()):
        Counts.calls += 1
    assert Counts.calls == 1


def test_one_trace_waits_for_another():
    """Both replace wrapped functions: if the first began and ended first, the second would put back replacements."""
    STOPS.update(first=Stop(), second=Stop())
    try:
        with threads(2) as pool:
            first = pool.submit(transformed, Stopping("first"))
            assert STOPS["first"].reached.wait(HANGS)
            second = pool.submit(transformed, Stopping("second"))
            assert not STOPS["second"].reached.wait(0.3)
            STOPS["first"].may_go_on.set()
            results = [first.result(HANGS)]
            STOPS["second"].may_go_on.set()
            results.append(second.result(HANGS))
    finally:
        for stop in STOPS.values():
            stop.may_go_on.set()
        STOPS.clear()
    assert concurrency.doubled is DOUBLED
    for gm in results:
        assert [node.target for node in gm.graph.nodes if "doubled" in node.name] == [DOUBLED] * 2


class Fails(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        assert concurrency.doubled is not DOUBLED
        raise self.error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_trace_that_fails_leaves_nothing_behind(error):
    def own(frame, event, argument):
        return None

    transformed(Stopping())
    model, before, trace = Fails(error), visible(), sys.gettrace()
    sys.settrace(own)
    try:
        try:
            assert list(reasons(transformed(model))) == ["opaque_part"]
        except (KeyboardInterrupt, SystemExit):
            assert not issubclass(error, Exception)
        assert sys.gettrace() is own
    finally:
        sys.settrace(trace)
    assert_visible(before)
    assert concurrency.doubled is DOUBLED
    assert reasons(transformed(Stopping())) == {}


@pytest.mark.parametrize("model", [Stopping(), Fails(ValueError)], ids=lambda model: type(model).__name__)
def test_the_trace_function_of_a_thread_stays(model):
    calls = []

    def own(frame, event, argument):
        calls.append(frame.f_code.co_name)

    before = sys.gettrace()
    sys.settrace(own)
    try:
        transformed(model)
        assert sys.gettrace() is own
        calls.clear()
        doubled(ONES)
    finally:
        sys.settrace(before)
    assert "doubled" in calls


def check_transforms_beside_busy_threads(rounds, transforming):
    """All results are as alone; what other threads draw is what they would have drawn, and no number comes twice."""
    examples = [example(name) for name in NAMES]
    alone = [transformed(model) for model, _ in examples]
    # Those of the last model come of random numbers.
    outputs = [*(gm(*inputs) for gm, (_, inputs) in zip(alone[:-1], examples, strict=False)), None]
    expected = [job() for job in JOBS]
    originals = [state_of(model) for model, _ in examples]

    def work():
        return [job() for job in JOBS]

    def transform_all():
        for _ in range(rounds):
            for (model, inputs), one, output in zip(examples, alone, outputs, strict=True):
                gm = transformed(model)
                assert_same_transform(gm, one)
                assert output is None or torch.equal(gm(*inputs), output)

    transformed(Stopping())
    seed_everything()
    before = visible()
    with busy(draw, draw, work, work) as (drawn, also_drawn, *worked), threads(transforming) as pool:
        for each in [pool.submit(transform_all) for _ in range(transforming)]:
            each.result()
    for results in worked:
        for result in results:
            assert all(map(torch.equal, result, expected))
    numbers = [*drawn, *also_drawn]
    seed_everything()
    assert Counter(numbers_by_generator(numbers)) == Counter(numbers_by_generator([draw() for _ in numbers]))
    seed_everything()
    assert_visible(before)
    assert concurrency.doubled is DOUBLED
    for (model, _), original in zip(examples, originals, strict=True):
        assert_same_state(state_of(model), original)


def test_numbers_drawn_beside_a_model_that_is_checked():
    (model, inputs), alone = example("FunctionalDropout"), None
    with busy(draw, draw) as results:
        for _ in range(3):
            gm = fxhash.transform(model, 0.9, seed=0, example_inputs=inputs)
            alone = alone or gm
            assert_same_transform(gm, alone)
    numbers = Counter(numbers_by_generator([each for result in results for each in result]))
    assert max(numbers.values()) == 1


def test_the_random_numbers_of_a_thread_that_checks_stay():
    model, inputs = example("FunctionalDropout")
    seed_everything()
    before = draw()
    seed_everything()
    fxhash.transform(model, 0.9, seed=0, example_inputs=inputs)
    assert draw() == before


def test_a_wrapped_function_is_recorded_in_the_thread_that_traces_alone():
    proxy = torch.fx.Proxy(torch.fx.Graph().placeholder("x"))
    with stopped(Stopping()), pytest.raises(AssertionError):
        concurrency.doubled(proxy)


def numbers_by_generator(numbers):
    return [(kind, number) for each in numbers for kind, number in enumerate(each)]


def test_transforms_beside_busy_threads():
    check_transforms_beside_busy_threads(rounds=2, transforming=1)


@pytest.mark.slow
def test_many_transforms_beside_busy_threads():
    check_transforms_beside_busy_threads(rounds=30, transforming=2)


@pytest.mark.parametrize("name", NAMES)
def test_two_threads_transform_one_model(name):
    model, _ = example(name)
    alone, state = transformed(model), state_of(model)
    begin = threading.Barrier(2)

    def transform():
        begin.wait(HANGS)
        return [transformed(model) for _ in range(2)]

    with threads(2) as pool:
        for each in [pool.submit(transform) for _ in range(2)]:
            for gm in each.result():
                assert_same_transform(gm, alone)
    assert_same_state(state_of(model), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_model_is_called_while_it_is_transformed(name):
    model, inputs = example(name)
    alone, expected = transformed(model), model(*inputs)
    with busy(lambda: model(*inputs), lambda: model(*inputs)) as results:
        for _ in range(4):
            assert_same_transform(transformed(model), alone)
    for result in (*results[0], *results[1]):
        assert torch.equal(result, expected)


class CallsWhileCopied(nn.Module):
    """Stands for another thread that calls a model while it is copied for the first time."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.calls = [partial(model, *inputs)]

    def forward(self, x: Tensor) -> Tensor:
        return x

    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        for call in self.calls:
            call()
        self.calls.clear()
        return nn.Identity()


def test_a_model_is_called_while_it_is_copied():
    """The older weight norm sets another weight at each call."""
    model, inputs = example("HookedWeightNorm")
    alone = transformed(nn.Sequential(nn.Identity(), model))
    assert_same_transform(transformed(nn.Sequential(CallsWhileCopied(model, inputs), model)), alone)


def test_numbers_drawn_beside_a_model_on_the_meta_device():
    """Its initial values take numbers from the generator that all threads share, and put none back."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))

    def masks():
        return F.dropout(torch.ones(128)).numpy().tobytes(), *draw()

    with busy(masks, masks) as results:
        made = [fxhash.transform(model, 0.9, seed=0, device="cpu").get_parameter("0.bias") for _ in range(6)]
    drawn = [number for result in results for each in result for number in each]
    assert len(set(drawn)) == len(drawn)
    assert len({tuple(bias.tolist()) for bias in made}) == len(made)


@pytest.mark.parametrize("name", ["ResidualConvNet", "BranchesOnInput"])
def test_every_function_in_several_threads_at_once(name, tmp_path):
    model, inputs = example(name)
    gm = transformed(model)

    def everything(path):
        fxhash.save(gm, path)
        lowered = fxhash.lower_for_deploy(fxhash.load(path, model))
        states = [state_of(each) for each in (transformed(model), fxhash.materialize(gm), lowered)]
        with torch.inference_mode():
            return states, lowered(*inputs), fxhash.summary(lowered).table, path.read_bytes()

    states, output, summary, file = everything(tmp_path / "alone")
    begin = threading.Barrier(3)

    def at_once(number):
        begin.wait(HANGS)
        return [everything(tmp_path / str(number)) for _ in range(2)]

    with threads(3) as pool:
        results = [pool.submit(at_once, number) for number in range(3)]
        for each in (each for result in results for each in result.result()):
            for one, other in zip(each[0], states, strict=True):
                assert_same_state(one, other)
            assert torch.equal(each[1], output)
            assert each[2:] == (summary, file)


class Interrupted(dict[str, Tensor]):
    """The buffers of a module; whenever they change, another thread calls the model."""

    def __init__(self, buffers: dict[str, Tensor], call: Callable[[], object]) -> None:
        super().__init__(buffers)
        self.call = call

    def clear(self) -> None:
        super().clear()
        self.call()

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.call()

    def __setitem__(self, name: str, value: Tensor) -> None:
        super().__setitem__(name, value)
        self.call()


class BranchesToNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) if x.sum() > 0 else self.linear(x)


def test_buffers_of_an_opaque_submodule_are_there_while_another_thread_calls_it():
    gm = transformed(BranchesToNorm().eval())
    (norm,) = (module for module in gm.modules() if isinstance(module, nn.BatchNorm1d))
    buffers = dict(norm._buffers)
    results: list[Tensor] = []

    def call_again() -> None:
        norm._buffers.call = lambda: None
        results.append(other.submit(gm, ONES).result(HANGS))

    expected = gm(ONES)
    with threads(1) as other:
        norm._buffers = Interrupted(buffers, call_again)
        results.append(gm(ONES))
    for result in results:
        assert torch.equal(result, expected)


def test_a_lowered_model_in_several_threads_while_others_are_lowered():
    model, inputs = example("BranchesOnInput")
    gm = transformed(model)
    lowered = fxhash.lower_for_deploy(gm)
    with torch.no_grad():
        expected = lowered(*inputs), gm(*inputs)

    def call_both():
        with torch.no_grad():
            return lowered(*inputs), gm(*inputs)

    with busy(call_both, call_both) as results:
        for _ in range(3):
            assert_same_state(state_of(fxhash.lower_for_deploy(gm)), state_of(lowered))
    for one, other in (each for result in results for each in result):
        assert torch.equal(one, expected[0])
        assert torch.equal(other, expected[1])
