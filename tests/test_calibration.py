"""Starts that are fitted to what a model's layers read: what is seen, what is kept, and what is refused."""

from __future__ import annotations

import copy
import random
import warnings
from collections import UserDict
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn import functional as F

import fxhash
from fxhash.capture.calibration import collect_moments, layer_weights
from fxhash.capture.output_gradients import output_gradients
from fxhash.smh.calibrated_start import fit_to_inputs_
from fxhash.smh.calibration import moments, unfolded
from fxhash.smh.importance import whitening
from fxhash.transformed import expose
from tests.helpers import assert_same_outputs, may_be_opaque, trainable, uncalibrated
from tests.models import MODELS
from tests.strategies import fractions, random_models

pytestmark = may_be_opaque


class Everything(nn.Module):
    """Layers that are modules, functions, in attention, and in code that is opaque; an embedding beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(6, 8, 3, groups=2, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.raw = nn.Parameter(torch.randn(5, 8))
        self.embedding = nn.Embedding(3, 8)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        x = self.grouped(self.first(x).relu()).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x)[0] + self.embedding.weight[0]
        x = F.linear(self.encoder(x), self.raw)
        return x if shift is None else x + shift


# Weights that attention reads in code of its own.
IN_PROJECTIONS = {"attention.in_proj_weight", "encoder.self_attn.in_proj_weight"}


def hashed(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}


def seen(model: nn.Module, batches, required=()):
    return collect_moments(model, hashed(model), required, batches)


@pytest.mark.parametrize("training", [False, True])
def test_what_every_layer_reads_is_seen(training):
    torch.manual_seed(0)
    model = Everything().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(3, 2, 10, 10)
    store = seen(model, [x[:2], x[2:]])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training is training
    assert {name for name in hashed(model) if name in store} == set(hashed(model)) - {"embedding.weight"}
    expected = moments(unfolded(x, (3, 3), (2, 2), (1, 1), (1, 1)))
    torch.testing.assert_close(store["first.weight"].products, expected.products)
    assert store["first.weight"].count == 3 * 25
    inputs = model.first(x).relu()
    grouped = moments(unfolded(inputs, (3, 3), (1, 1), (0, 0), (1, 1), 2))
    torch.testing.assert_close(store["grouped.weight"].products, grouped.products)
    x = model.grouped(inputs).flatten(2).transpose(1, 2)
    torch.testing.assert_close(store["attention.in_proj_weight"].products[0], x.flatten(0, 1).T @ x.flatten(0, 1))


def test_layers_of_the_same_value_share_their_moments():
    class Projections(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.changed = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.q(x) + self.k(x)
            return y + self.changed(x.add_(1))

    store = seen(Projections(), [torch.randn(5, 4), torch.randn(2, 4)])
    assert store["q.weight"] is store["k.weight"]
    assert store["changed.weight"] is not store["k.weight"]
    assert store["changed.weight"].count == store["q.weight"].count == 7


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: [x, None],
        lambda x: {"x": x},
        lambda x: UserDict(x=x, shift=torch.zeros(())),
    ],
)
def test_a_batch_is_a_tensor_a_tuple_or_a_dictionary(batch):
    torch.manual_seed(0)
    model, x = Everything().eval(), torch.randn(4, 2, 10, 10)
    with torch.inference_mode():
        inputs = [x[:2].clone(), x[2:].clone()]
        given_by = fxhash.transform(model, 0.5, init="pretrained", calibration=list(map(batch, inputs)), seed=0)
    expected = fxhash.transform(model, 0.5, init="pretrained", calibration=[x[:2], x[2:]], seed=0)
    for one, other in zip(given_by.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


# Of models that call some layers for some inputs, or in training, alone: what no batch reaches.
UNREACHED = {"BranchesOnInput": "negative", "BranchesOnMode": "auxiliary", "RandomControlFlow": "layers"}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_can_be_calibrated(name):
    torch.manual_seed(0)
    random.seed(0)
    model, inputs = MODELS[name][0](), MODELS[name][1]()
    given_inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    if name in UNREACHED:
        with pytest.raises(fxhash.TransformError, match=f"no batch reached the layer of .*{UNREACHED[name]}"):
            fxhash.transform(model, 0.9, init="pretrained", calibration=[given_inputs])
        return
    gm = fxhash.transform(model, 0.9, init="pretrained", calibration=[given_inputs], seed=0)
    assert trainable(gm) == gm.smh_generator.plan.trainable_after <= 0.9 * trainable(model)
    assert all(bool(each.isfinite().all()) for each in gm.smh_generator.parameters())


def calibrated_loss(model: nn.Module, gm: nn.Module, batches) -> float:
    """The mean squares by which the outputs of layers are off on their own inputs, each relative, and other weights."""
    store, generator = seen(model, batches), gm.smh_generator
    total = 0.0
    for parameter in generator.plan.hashed:
        original = model.get_parameter(parameter.fqn).detach().double()
        error = (generator(parameter.fqn).detach().double() - original).reshape(original.shape[0], -1)
        original = (original - generator.shifts[generator.plan.hashed.index(parameter)]).reshape(original.shape[0], -1)
        length = original.shape[1]
        gram = store[parameter.fqn].gram[0].double() if parameter.fqn in store else torch.eye(length).double()
        gram = gram + torch.eye(length) * 1e-4 * gram.diagonal().mean()
        energy = (original @ gram * original).sum()
        if energy > 0:
            total += (original.shape[0] * (error @ gram * error).sum() / energy).item()
    return total


@uncalibrated
@given(random_models(), fractions)
def test_a_calibrated_start_is_never_worse_on_what_it_was_fitted_to(case, compress):
    model, x = case
    try:
        near = fxhash.transform(model, compress, init="pretrained", seed=0, separable=False, aspect=4)
    except fxhash.BudgetError as error:
        compress = error.smallest_compress
        near = fxhash.transform(model, compress, init="pretrained", seed=0, separable=False, aspect=4)
    gm = fxhash.transform(model, compress, init="pretrained", calibration=iter([x]), seed=0, separable=False, aspect=4)
    plan, by_size = gm.smh_generator.plan, near.smh_generator.plan
    assert (plan.layout.cols, plan.trainable_after) == (by_size.layout.cols, by_size.trainable_after)
    worst = calibrated_loss(model, near, [x])
    assert calibrated_loss(model, gm, [x]) <= worst * (1 + 2e-2) + 1e-3


def convolutions() -> tuple[nn.Module, Tensor]:
    """Three convolutions, with smooth images for them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    return model, F.interpolate(torch.randn(16, 3, 4, 4), size=14, mode="bilinear")


@uncalibrated
def test_separable_convolutions_come_nearer_too():
    model, x = convolutions()
    plain = fxhash.transform(model, 0.15, init="pretrained", seed=0)
    assert any(parameter.kernels for parameter in plain.smh_generator.plan.hashed)
    fitted = copy.deepcopy(plain)
    loss = fit_to_inputs_(fitted.smh_generator, hashed(model), seen(model, [x])).loss
    expected = model(x)
    assert (fitted(x) - expected).square().mean() < 0.8 * (plain(x) - expected).square().mean()
    found = calibrated_loss(model, fitted, [x])
    assert found < 0.8 * calibrated_loss(model, plain, [x])
    assert abs(found - loss) < 1e-2 * loss
    unimproved = fit_to_inputs_(copy.deepcopy(plain).smh_generator, hashed(model), seen(model, [x]), rounds=0).loss
    assert loss < unimproved


def test_the_best_of_some_layouts_is_taken():
    """An aspect that is given stays, as does a convolution that is not to be separable; the budget always does."""
    model, x = convolutions()
    losses, plans = [], []
    for options in ({}, {"aspect": 16.0}, {"separable": False}, {"aspect": 16.0, "separable": False}):
        gm = fxhash.transform(model, 0.15, init="pretrained", calibration=iter([x]), seed=0, **options)
        assert trainable(gm) <= 0.15 * trainable(model)
        losses.append(calibrated_loss(model, gm, [x]))
        plans.append(gm.smh_generator.plan)
    assert losses[0] < 1.05 * min(losses)
    assert losses[0] < 0.9 * losses[3]
    assert [plan.aspect for plan in plans[1::2]] == [16.0, 16.0]
    assert not any(parameter.kernels for plan in plans[2:] for parameter in plan.hashed)


def test_batches_that_can_be_repeated_bring_the_outputs_nearer():
    """Layers follow the inputs that the compressed layers before them leave; one-shot iterators can't show these."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(32, 32), nn.Tanh())]
    model = nn.Sequential(*layers)
    x = torch.randn(600, 32) @ torch.randn(32, 32) / 6
    errors = []
    for batches in (iter([x]), [x]):
        gm = fxhash.transform(model, 0.4, init="pretrained", calibration=batches, seed=0)
        errors.append((gm(x) - model(x)).square().mean())
    assert errors[1] < 0.95 * errors[0]


@given(random_models())
def test_following_inputs_never_leaves_outputs_further_away(case):
    model, x = case
    errors = []
    for follows in (False, True):
        with nullcontext() if follows else patch("fxhash.initial_factors._follow_compressed_inputs_"):
            gm = fxhash.transform(model.eval(), 1.0, init="pretrained", calibration=[x], seed=0)
        with torch.no_grad():
            errors.append((gm(x) - model(x)).double().square().sum().item())
    assert errors[1] <= errors[0] * (1 + 1e-3) + 1e-6


def gradients_of(model: nn.Module, batches) -> dict[str, float] | None:
    return output_gradients(model, whitening(hashed(model), seen(model, batches)), batches)


def test_what_the_outputs_of_a_linear_chain_depend_on():
    """An output's gradient by a layer's outputs is what the layers after it multiply these by."""
    torch.manual_seed(0)
    first, second, third = nn.Linear(20, 30), nn.Linear(30, 25), nn.Linear(25, 40)
    model = nn.Sequential(first, nn.Sequential(second, third)).train().requires_grad_(False)
    x = torch.randn(2000, 20)
    found = gradients_of(model, list(x.split(100)))
    after = {"0.weight": third.weight @ second.weight, "1.0.weight": third.weight, "1.1.weight": torch.eye(40)}
    for name, matrix in after.items():
        expected = len(x) * matrix.square().sum(0).mean().item()
        assert abs(found[name] - expected) < 0.2 * expected
    assert model.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


class OutputsOfManyKinds(nn.Module):
    """A batch norm, a table, an opaque loop, and outputs in a structure; one layer's values are not differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.cut = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.table = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> dict[str, object]:
        x = self.norm(self.layer(x)) + self.table[0]
        while x.sum() > 1e9:
            x = x / 2
        with torch.no_grad():
            cut = self.cut(x)
        return {"hidden": [x, (x.argmax(1), x * 2)], "cut": cut, "name": "x"}


def test_outputs_of_any_structure_have_gradients():
    torch.manual_seed(0)
    model = OutputsOfManyKinds()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gradients_of(model, [torch.randn(50, 6) for _ in range(3)])
    assert found["layer.weight"] > 0
    assert found["table"] > 0
    assert found["cut.weight"] == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    gm = fxhash.transform(model, 0.9, init="pretrained", calibration=[torch.randn(50, 6)], seed=0)
    assert bool(gm.smh_generator("cut.weight").any())


class WithoutGradients(nn.Module):
    """A model whose outputs can't be differentiated, or whose backward raises."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.first, self.second, self.raises = nn.Linear(30, 30), nn.Linear(30, 30), raises

    def forward(self, x: Tensor) -> Tensor:
        if self.raises:
            return self.second(self.first(x)).sigmoid_().sqrt_().log_().sqrt_().exp_().mul_(x)
        return self.second(self.first(x)).detach()


@pytest.mark.parametrize("raises", [False, True])
def test_a_model_that_cannot_be_differentiated_counts_relative_errors(raises):
    torch.manual_seed(0)
    model, x = WithoutGradients(raises), torch.randn(64, 30)
    assert gradients_of(model, [x]) is None
    gm = fxhash.transform(model, 0.5, init="pretrained", calibration=[x], seed=0)
    once = fxhash.transform(model, 0.5, init="pretrained", calibration=iter([x]), seed=0)
    assert gm.smh_generator.plan == once.smh_generator.plan


def test_what_matters_to_the_outputs_gets_the_ranks():
    """Half of the layers are all but cut off by what follows; their relative errors can't tell, and choose columns."""
    torch.manual_seed(0)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = (
                nn.Sequential(*[nn.Linear(48, 48, bias=False) for _ in range(3)]) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + 1e-3 * self.unused(x)

    model, x = Branches(), torch.randn(400, 48)
    errors, columns = [], []
    for batches in (iter([x]), [x]):
        gm = fxhash.transform(model, 0.4, init="pretrained", calibration=batches, seed=0)
        ranks = {parameter.fqn: parameter.rank for parameter in gm.smh_generator.plan.hashed}
        columns.append(gm.smh_generator.plan.layout.cols)
        errors.append((gm(x) - model(x)).square().mean())
    assert columns[0] == columns[1]
    assert all(rank > 2 * ranks[name.replace("used", "unused")] for name, rank in ranks.items() if "unused" not in name)
    assert errors[1] < 0.5 * errors[0]
    assert gm.smh_generator.plan.trainable_after == fxhash.transform(model, 0.4).smh_generator.plan.trainable_after


def test_inputs_of_few_dimensions_need_few_ranks():
    """The weights have all ranks, their inputs three dimensions: what is left out can't be seen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60, bias=False)).double()
    x = torch.randn(200, 3, dtype=torch.float64) @ torch.randn(3, 60, dtype=torch.float64)
    gm = fxhash.transform(model, 0.35, init="pretrained", calibration=x.split(50), seed=0, aspect=2)
    assert_same_outputs(model, gm, x, rtol=1e-2)


class Twice(nn.Module):
    """A layer that is called for some inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.seldom, self.never = nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = self.always(x)
        return self.seldom(x) if x.sum() > 1e9 else x * self.never.bias.sum()


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (
            torch.zeros(2, 30),
            r"calibration=tensor.* is no iterable of batches: give a list of them, such as \[inp",
        ),
        ({"x": torch.zeros(2, 30)}, "is no iterable of batches"),
        (3, "calibration=3 is no iterable of batches"),
        ([], "calibration holds no batch"),
        ([torch.zeros(2, 30), torch.zeros(2, 7)], r"can't be called with batch 1 \(RuntimeError: .*give the inputs of"),
        ([(torch.zeros(2, 30), torch.zeros(2))], r"can't be called with batch 0 \(TypeError"),
        ([torch.full((2, 30), torch.nan)], "the layer of 'always.weight' reads NaN"),
        ([torch.full((2, 30), 1e30)], "too large to square"),
    ],
)
def test_impossible_calibrations(calibration, message):
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always = nn.Linear(30, 30)

        def forward(self, x: Tensor) -> Tensor:
            return self.always(x)

    with pytest.raises(fxhash.TransformError, match=message):
        fxhash.transform(Always(), 0.5, init="pretrained", calibration=calibration)


def test_a_layer_that_no_batch_reached():
    message = r"no batch reached the layer of 'never\.weight' \(nor those of 1 more\) in eval mode: give batches"
    with pytest.raises(fxhash.TransformError, match=message):
        fxhash.transform(Twice(), 0.5, init="pretrained", calibration=[torch.zeros(2, 30)])
    fxhash.transform(Twice(), 0.9, init="pretrained", calibration=[torch.zeros(2, 30)], exclude="seldom|never")


class RawWeight(nn.Module):
    """A layer that is a function of a raw parameter, and a table that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.table = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.raw) @ self.table


def test_weights_of_layers_are_told_from_other_parameters():
    for model, expected in (
        (RawWeight(), {"raw"}),
        (Everything(), set(hashed(Everything())) - {"raw", "embedding.weight"} - IN_PROJECTIONS),
    ):
        names = set(hashed(model))
        assert layer_weights(model, expose(model, names), names) == expected


def test_calibration_needs_a_start_that_uses_it():
    model = nn.Linear(30, 30)
    with pytest.raises(fxhash.PlanError, match="calibration is what init='pretrained' is fitted to"):
        fxhash.transform(model, 0.5, calibration=[torch.zeros(1, 30)])
    with pytest.warns(UserWarning, match="give calibration=") as caught:
        fxhash.transform(model, 0.5, init="pretrained")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxhash.transform(model, 0.5, init="pretrained", calibration=[torch.ones(1, 30)])
