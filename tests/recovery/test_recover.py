"""What a recovery trains, what it leaves alone, how it goes on, and what it refuses."""

from __future__ import annotations

from collections import OrderedDict

import lightning.fabric  # noqa: F401  # It changes filters of warnings when it is imported first.
import pytest
import torch
from torch import Tensor, nn

import fxhash
from fxhash.recovery import loop
from fxhash.recovery.hidden_states import HiddenStates
from fxhash.recovery.state import FILE
from tests.concurrency import visible
from tests.helpers import may_be_opaque
from tests.models import MODELS

pytestmark = may_be_opaque


class Encoder(nn.Module):
    """Layers between norms, dropout, and an output that is a dictionary with more than one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm, self.dropout = nn.LayerNorm(32), nn.Dropout(0.5)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.dropout(self.norm(self.first(x)))
        out = self.second(hidden)
        return OrderedDict(out=out if shift is None else out + shift, hidden=hidden, largest=hidden.argmax(-1))


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


def inputs(count: int = 12, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(24, 16, generator=generator) for _ in range(count)]


def compressed(model: nn.Module, fraction: float = 0.4) -> torch.fx.GraphModule:
    return fxhash.transform(model, fraction, seed=0)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_values(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def error(model: nn.Module, teacher: nn.Module, batches: list[Tensor]) -> float:
    """The relative error over all outputs in eval mode."""
    with torch.no_grad():
        pairs = [(model.eval()(batch), teacher.eval()(batch)) for batch in batches]
    off = sum((one[key] - other[key]).square().sum() for one, other in pairs for key in ("out", "hidden"))
    return (off / sum(other[key].square().sum() for _, other in pairs for key in ("out", "hidden"))).item()


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_come_nearer_and_the_models_stay_as_they_were(encoder, lowered, training):
    gm = compressed(encoder)
    gm = (fxhash.lower_for_training(gm) if lowered else gm).train(training)
    before, teachers, seen = values(gm), values(encoder), visible()
    recovery = fxhash.recover(gm, encoder, inputs(), steps=60, held_out=inputs(2, seed=1))
    assert visible() == seen
    assert_same_values(values(gm), before)
    assert_same_values(values(encoder), teachers)
    assert encoder.training
    assert gm.training is recovery.model.training is training
    assert {module.training for module in recovery.model.modules()} == {training}
    assert isinstance(recovery.model, torch.fx.GraphModule)
    assert recovery.model.state_dict().keys() == before.keys()
    assert (recovery.steps, recovery.hidden_states) == (60, 1)
    assert recovery.after.error < 0.6 * recovery.before.error
    assert recovery.after.cosine > recovery.before.cosine
    assert "cosine" in str(recovery)
    for model, figures in ((gm, recovery.before), (recovery.model, recovery.after)):
        assert error(model, encoder, inputs(2, seed=1)) == pytest.approx(figures.error, rel=1e-4)


def test_a_parameter_that_requires_no_gradient_stays(encoder):
    gm = compressed(encoder)
    gm.smh_generator.right.requires_grad_(False)
    model = fxhash.recover(gm, encoder, inputs(), steps=5, learning_rate=0.01).model
    same = {name for name, value in gm.state_dict().items() if torch.equal(value, model.state_dict()[name])}
    assert same == {"smh_generator.right", "smh_generator.shifts"}


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "generator", "inference mode", "no gradients"])
def test_batches_of_any_kind(encoder, kind):
    plain, gm = inputs(), compressed(encoder)
    batches = {
        "tuple": [(batch, torch.ones(16)) for batch in plain],
        "dict": [{"x": batch, "shift": torch.ones(16)} for batch in plain],
        "generator": (batch for batch in plain * 3),
    }.get(kind, plain)
    with torch.inference_mode(kind == "inference mode"), torch.set_grad_enabled(kind != "no gradients"):
        recovery = fxhash.recover(gm, encoder, batches, steps=30, learning_rate=0.05)
    assert recovery.after.error < recovery.before.error


def test_the_same_bits_each_time_whether_it_was_killed_or_not(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_STATES", 0.0)
    gm, whole = compressed(encoder), {"steps": 30, "batches": inputs()}
    expected = fxhash.recover(gm, encoder, **whole)
    calls = iter(range(20))

    def stop(*_: object) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        step = loop.Loop.step
        context.setattr(loop.Loop, "step", lambda *args: (stop(), step(*args))[1])
        with pytest.raises(KeyboardInterrupt):
            fxhash.recover(gm, encoder, folder=tmp_path, **whole)
    torch.randn(3)
    resumed = fxhash.recover(gm, encoder, folder=tmp_path, **whole)
    assert_same_values(values(resumed.model), values(expected.model))
    assert (resumed.before, resumed.after, resumed.steps) == (expected.before, expected.after, 30)
    taken: list[object] = []
    monkeypatch.setattr(loop.Loop, "step", lambda *args: taken.append(args))
    again = fxhash.recover(gm, encoder, folder=tmp_path, **whole)
    assert taken == []
    assert_same_values(values(again.model), values(expected.model))


def test_a_finished_one_that_goes_on_skips_no_batch(encoder, tmp_path, monkeypatch):
    taken, step = [], loop.Loop.step
    monkeypatch.setattr(loop.Loop, "step", lambda self, batch: (taken.append(batch), step(self, batch))[1])
    gm, batches = compressed(encoder), inputs()
    fxhash.recover(gm, encoder, batches, steps=8)
    whole = list(taken)
    taken.clear()
    for steps in (3, 8):
        fxhash.recover(gm, encoder, batches, steps=steps, folder=tmp_path)
    assert [each is other for each, other in zip(taken, whole, strict=True)] == [True] * 8


class Loader:
    """Batches that can be gone through again, in another order each time if they are shuffled."""

    def __init__(self, shuffled: bool) -> None:
        self.shuffled, self.rounds = shuffled, 0

    def __iter__(self):
        self.rounds += self.shuffled
        return iter(inputs(seed=self.rounds))


def test_what_is_shuffled_holds_no_batch_out(encoder):
    gm = compressed(encoder)
    fxhash.recover(gm, encoder, Loader(False), steps=2)
    fxhash.recover(gm, encoder, Loader(True), steps=2, held_out=inputs(1))
    with pytest.warns(UserWarning, match=r"another order each time.*Give held_out"):
        fxhash.recover(gm, encoder, Loader(True), steps=2)


def test_the_time_decides_the_learning_rate(encoder):
    seconds, rates = iter(range(10**6)), []
    optimizer_step = torch.optim.Adam.step

    class Watched(torch.optim.Adam):
        def step(self, *args, **named):
            rates.append(self.param_groups[0]["lr"] / self.param_groups[0]["peak"])
            return optimizer_step(self, *args, **named)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(torch.optim, "Adam", Watched)
        recovery = fxhash.recover(compressed(encoder), encoder, inputs(), minutes=1, clock=lambda: next(seconds))
    assert (recovery.steps, recovery.seconds) == (60, 60)
    assert max(rates) > 0.99
    assert rates[0] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.01


def test_held_out_batches_are_never_trained_on(encoder):
    batches = [torch.full((4, 16), float(number + 1)) for number in range(40)]
    trained: list[float] = []
    with pytest.MonkeyPatch.context() as context:
        step = loop.Loop.step
        context.setattr(
            loop.Loop, "step", lambda self, batch: (trained.append(batch[0, 0].item()), step(self, batch))[1]
        )
        fxhash.recover(compressed(encoder), encoder, batches, steps=76)
        assert len(set(trained)) == 38
        assert len(set(trained[:38])) == 38
        assert trained[:38] != trained[38:]
        trained.clear()
        with pytest.warns(UserWarning, match="batches ended after 39 steps, before the time was over"):
            fxhash.recover(compressed(encoder), encoder, iter(batches), steps=76)
    assert trained == [float(number) for number in range(2, 41)]


def test_what_is_worse_is_not_returned(encoder):
    gm = compressed(encoder, 0.9)
    gm.load_state_dict(fxhash.recover(gm, encoder, inputs(), steps=200).model.state_dict())
    recovery = fxhash.recover(
        gm, encoder, [torch.full((2, 16), 9.0)] * 3, steps=5, held_out=inputs(), learning_rate=0.9
    )
    assert recovery.after == recovery.before
    assert_same_values(values(recovery.model), values(gm))


@pytest.mark.parametrize("capture", ["trace", "modules"])
@pytest.mark.parametrize(
    "name", ["ResidualConvNet", "SharedModule", "TransformerEncoderLayer", "SeparableConvolutions"]
)
def test_hidden_states_of_all_forms_correspond(name, capture):
    torch.manual_seed(0)
    make, examples = MODELS[name]
    model, example = make().eval(), examples()
    gm = fxhash.transform(model, 0.9, seed=0, capture=capture)
    found = []
    for each in (model, gm, fxhash.lower_for_training(gm)):
        with HiddenStates() as states:
            each(*example)
        found.append([value.shape for value in states.values])
    assert found[0] == found[1] == found[2] != []


class Wider(nn.Module):
    """As `Encoder`, with another number of outputs."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x, "hidden": x[:, :3]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"minutes": 0}, "minutes=0 is no time to train for: .* such as minutes=20"),
        ({"steps": 0}, "steps=0 is no number of steps"),
        ({"learning_rate": 1.5}, "learning_rate=1.5 is no step over the size"),
        ({"precision": "fp8"}, "precision='fp8' is unknown: give '32' or 'bf16'"),
        ({"clock": lambda: None}, "gives no seconds: .* such as time.process_time"),
        ({"batches": torch.zeros(2, 16)}, "batches=.* is no iterable of batches"),
        ({"held_out": []}, "held_out holds no batch"),
        ({"batches": [], "held_out": inputs(1)}, "batches holds no batch to learn from"),
        ({"batches": inputs(1)}, "needs at least two batches: one is held out"),
        ({"batches": [torch.zeros(2, 9)] * 3}, "teacher can't be called with one .* a dictionary"),
        ({"batches": ["x"], "held_out": inputs(1)}, "teacher can't be called with one .* a dictionary"),
        ({"teacher": Wider()}, r"shapes \[\(24, 16\), \(24, 32\)\], teacher \[\(24, 16\), \(24, 3\)\]: they must be"),
        ({"gm": nn.Linear(16, 16)}, "expected the result of fxhash.transform"),
    ],
)
def test_refused_before_anything_is_written(encoder, tmp_path, wrong, message):
    right = {"gm": compressed(encoder), "teacher": encoder, "batches": inputs(), "steps": 1, "folder": tmp_path / "new"}
    with pytest.raises(fxhash.FxhashError, match=message):
        fxhash.recover(**(right | wrong))
    assert list(tmp_path.iterdir()) == []


def test_another_learning_rate_is_refused_and_nothing_lost(encoder, tmp_path):
    gm = compressed(encoder)
    fxhash.recover(gm, encoder, inputs(), steps=2, folder=tmp_path, learning_rate=0.01)
    content = (tmp_path / FILE).read_bytes()
    with pytest.raises(fxhash.PlanError, match=r"learning_rate=0\.5, but the recovery in this folder began with 0\.01"):
        fxhash.recover(gm, encoder, inputs(), steps=4, folder=tmp_path, learning_rate=0.5)
    assert (tmp_path / FILE).read_bytes() == content
    assert fxhash.recover(gm, encoder, inputs(), steps=4, folder=tmp_path, learning_rate=0.01).steps == 4


def test_factors_in_other_bits_are_another_model(encoder, tmp_path):
    gm = compressed(encoder)
    fxhash.recover(gm, encoder, inputs(), steps=2, folder=tmp_path)
    with pytest.raises(fxhash.CheckpointError, match="holds the recovery of another model, or of other factors"):
        fxhash.recover(fxhash.quantize_factors(gm, 4), encoder, inputs(), steps=2, folder=tmp_path)


def test_a_folder_of_something_else_is_refused(encoder, tmp_path):
    gm = compressed(encoder)
    fxhash.recover(gm, encoder, inputs(), steps=2, folder=tmp_path)
    with pytest.raises(fxhash.CheckpointError, match="holds the recovery of another model"):
        fxhash.recover(fxhash.transform(encoder, 0.4, seed=1), encoder, inputs(), steps=2, folder=tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-200])
    with pytest.raises(fxhash.CheckpointError, match=r"is damaged, or not of fxhash.recover .*delete it to begin anew"):
        fxhash.recover(gm, encoder, inputs(), steps=2, folder=tmp_path)
    torch.save({"model": 1}, tmp_path / FILE)
    with pytest.raises(fxhash.CheckpointError, match=r"is not of fxhash.recover"):
        fxhash.recover(gm, encoder, inputs(), steps=2, folder=tmp_path)


def test_a_loss_that_is_not_finite_is_an_error(encoder):
    batches = [*inputs(2), torch.full((2, 16), float("inf"))]
    with pytest.raises(fxhash.FxhashError, match=r"the loss is not finite after [01] steps"):
        fxhash.recover(compressed(encoder), encoder, batches, steps=5, held_out=inputs(1))
