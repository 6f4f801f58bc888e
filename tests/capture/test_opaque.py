"""Opaque submodules: why they are opaque, what still works in them, and that they hold no weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import wraps

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fxhash
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs, may_be_opaque
from tests.models import MODELS, BranchesOnInput

pytestmark = may_be_opaque


def test_one_untraceable_block_does_not_make_the_model_opaque():
    assert reasons(fxhash.trace(BranchesOnInput())) == {
        "inner.opaque_part": "its forward branches on a value that comes from its input"
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BranchesOnMode", "branches on a value that is a training flag"),
        ("RandomControlFlow", "draws random numbers"),
        ("NoGradBlock", "switches gradients on or off"),
        ("CountsCalls", "'calls'"),
        ("LSTM", "torch.nn.LSTM branches on its inputs or mode"),
        ("MaxNormEmbedding", "max_norm changes its weight in place"),
        ("HookedWeightNorm", "it has hooks"),
    ],
)
def test_reasons(name, reason):
    (found, *_) = reasons(fxhash.trace(MODELS[name][0]().eval())).values()
    assert reason in found


def any_arguments(forward):
    @wraps(forward)
    def wrapper(self, *args, **kwargs):
        return forward(self, *args, **kwargs)

    return wrapper


def test_a_decorator_that_takes_other_arguments():
    class Decorated(nn.Linear):
        @any_arguments
        def forward(self, x, scale=2.0, **more):
            return super().forward(x) * scale

    model = Decorated(8, 8)
    traced = fxhash.trace(model)
    (reason,) = reasons(traced).values()
    assert reason == "a decorator of its forward takes other arguments than the forward"
    assert_same_outputs(model, traced, torch.randn(2, 8))


def test_hooks_run():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    assert_same_outputs(model, fxhash.trace(model), torch.randn(2, 16))


def test_backward_hooks_run():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].register_full_backward_hook(lambda module, grad_input, grad_output: (grad_input[0] * 0,))
    x = torch.randn(2, 16, requires_grad=True)
    fxhash.trace(model)(x).sum().backward()
    assert x.grad.abs().sum() == 0


def test_a_hook_of_a_block_runs_at_each_call():
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 16)), nn.Linear(16, 16))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    traced = fxhash.trace(model)
    assert not seen
    traced(torch.randn(2, 16))
    assert [type(each) for each in seen] == [torch.Tensor]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_in_an_opaque_submodule(use_reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            if x.sum() > 1e9:
                return x
            return checkpoint(self.linear, x, use_reentrant=use_reentrant)

    gm = fxhash.transform(Checkpointed(), 0.9)
    gm(torch.randn(2, 16, requires_grad=True)).sum().backward()
    assert gm.smh_generator.right.grad.abs().sum() > 0


def test_threads_share_one_opaque_submodule():
    gm = fxhash.lower_for_deploy(fxhash.transform(BranchesOnInput(), 0.9, seed=0))
    batches = [torch.randn(2, 16) for _ in range(60)]
    with torch.no_grad(), ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for one, other in zip(map(gm, batches), pool.map(gm, batches), strict=True):
            assert torch.equal(one, other)


def test_an_opaque_submodule_holds_no_parameters_even_after_an_error():
    gm = fxhash.transform(BranchesOnInput(), 0.9)
    opaque = gm.inner.opaque_part
    with pytest.raises(RuntimeError):
        opaque(
            tuple(gm.smh_generator(f"inner.{name}.weight") for name in ("positive", "negative")),
            (torch.randn(3, 7),),
            {},
        )
    assert not [name for name, _ in opaque.named_parameters() if "weight" in name]
    recurrent = fxhash.transform(MODELS["LSTM"][0](), 0.6).recurrent.opaque_part.wrapped_module
    assert all(weight is None for weight in recurrent._flat_weights)


def test_keyword_only_arguments_of_an_opaque_model():
    class KeywordOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x, *, scale=2.0):
            return self.linear(x) * scale if x.sum() < 1e9 else x

    model, x = KeywordOnly(), torch.randn(2, 16)
    torch.testing.assert_close(fxhash.trace(model)(x, scale=3.0), model(x, scale=3.0))


def test_a_layer_that_two_opaque_submodules_share_is_passed_to_both():
    class Branching(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.own, self.shared = nn.Linear(16, 16), shared

        def forward(self, x):
            return self.shared(self.own(x)) if x.sum() < 1e9 else x

    shared = nn.Linear(16, 16)
    model, x = nn.Sequential(Branching(shared), Branching(shared)), torch.randn(2, 16)
    traced = fxhash.trace(model)
    assert list(reasons(traced)) == ["0.opaque_part", "1.opaque_part"]
    assert_same_outputs(model, traced, x)
    gm = fxhash.transform(model, 0.9, seed=0)
    assert_same_outputs(gm, fxhash.lower_for_deploy(gm), x)
    assert_same_outputs(gm, fxhash.materialize(gm), x)


def test_an_opaque_block_in_a_module_that_becomes_opaque_itself():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = BranchesOnInput()

        def forward(self, x):
            x = self.inner(x)
            return x if x.sum() < 1e9 else -x

    model = nn.Sequential(Outer(), nn.Linear(16, 16))
    traced = fxhash.trace(model)
    assert list(reasons(traced)) == ["0.opaque_part"]
    assert_same_outputs(model, traced, torch.randn(2, 16))


def test_traced_again_a_model_with_opaque_submodules_is_opaque_as_a_whole():
    """As it ever was: the names in files that were saved of such models depend on it."""
    model = BranchesOnInput()
    again = fxhash.trace(fxhash.trace(model))
    assert reasons(again)["opaque_part"] == "it was traced before, and has opaque submodules"
    assert_same_outputs(model, again, torch.randn(2, 16))


def test_a_constant_that_code_can_not_spell():
    """The whole model is opaque then, with the weights of its opaque submodules too."""

    class Level(int):
        def __repr__(self):
            return "<level>"

    class Leveled(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = nn.GRU(16, 16)

        def forward(self, x):
            return self.recurrent(x * Level(3))[0]

    model = Leveled()
    traced = fxhash.trace(model)
    assert "SyntaxError" in reasons(traced)["opaque_part"]
    assert_same_outputs(model, traced, torch.randn(2, 16))


@pytest.mark.parametrize("name", ["calls", "weight", "linear"])
def test_the_attribute_that_a_value_is_assigned_to_is_named(name):
    """On some versions of torch a buffer takes no value of a graph; parameters and layers never do."""

    class Assigns(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            y = self.linear(x) * self.weight
            setattr(self, name, y)
            return y

    (reason,) = reasons(fxhash.trace(Assigns())).values()
    assert reason == f"its forward changes {name!r}"


class Reads(nn.Module):
    """Branches on its input, and reads attributes that have the names of variables around it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 64)
        self.weights = nn.Linear(64, 16)

    def forward(self, x):
        return self.weights(self.body(x)) if x.sum() < 1e30 else x


@pytest.mark.parametrize("capture", ["trace", "modules"])
def test_a_variable_with_the_name_of_an_attribute_is_no_reference(capture, monkeypatch, tmp_path):
    model = Reads()
    monkeypatch.setitem(globals(), "body", model)
    monkeypatch.setitem(globals(), "weights", list(model.parameters()))
    gm = fxhash.transform(model, 0.5, capture=capture, seed=0)
    x = torch.randn(2, 16)
    assert_same_outputs(gm, fxhash.materialize(gm), x)
    fxhash.save(gm, tmp_path / "model.safetensors")
    assert_same_outputs(gm, fxhash.load(tmp_path / "model.safetensors", model, capture=capture), x)


def test_a_variable_that_is_read_is_a_reference(monkeypatch):
    class ReadsGlobal(Reads):
        def forward(self, x):
            return super().forward(x) + _held.body(x).sum()  # noqa: F821

    model = ReadsGlobal()
    monkeypatch.setitem(globals(), "_held", model)
    with pytest.raises(fxhash.TransformError, match="<global _held> refers to"):
        fxhash.transform(model, 0.5, seed=0)


@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("capture", ["trace", "modules"])
def test_a_table_with_sparse_gradients_has_dense_ones(table, capture):
    model = nn.Sequential(table(200, 16, sparse=True), nn.Linear(16, 8))
    gm = fxhash.transform(model, 0.3, capture=capture, seed=0)
    dense = fxhash.materialize(gm)
    assert model[0].sparse
    indices = torch.arange(6).view(2, 3)
    for form in (gm, fxhash.lower_for_training(gm)):
        assert_same_outputs(form, dense, indices)
        gm.zero_grad()
        form(indices).square().sum().backward()
        assert all(each.grad.layout is torch.strided for each in gm.parameters())
    if capture == "modules":
        assert dense[0].sparse


def test_an_excluded_table_keeps_sparse_gradients():
    model = nn.Sequential(nn.Embedding(200, 16, sparse=True), nn.Linear(16, 64))
    gm = fxhash.transform(model, 0.9, exclude=["^0"], capture="modules", seed=0)
    gm(torch.arange(3)).sum().backward()
    assert [each.grad.is_sparse for name, each in gm.named_parameters() if name.endswith("0.weight")] == [True]
