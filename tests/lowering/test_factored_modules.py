"""Modules nested in opaque submodules compute their weights one by one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fxhash
from fxhash.capture.opaque import OpaqueModule
from tests.helpers import CountingOperators, LargestTensor, assert_same_outputs, may_be_opaque
from tests.lowering.test_lowered_models import perturb

pytestmark = may_be_opaque


class Untraceable(nn.Module):
    """Layers of many kinds below a forward that branches on its input; one is called twice, one's weight is read."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.conv = nn.Conv1d(32, 64, 1)
        self.grouped = nn.Conv1d(64, 64, 3, groups=4, bias=False)
        self.circular = nn.Conv1d(64, 32, 3, padding=1, padding_mode="circular")
        self.blocks = nn.ModuleList([nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 32)])
        self.twice = nn.Linear(32, 32)
        self.shared = self.twice
        self.read = nn.Linear(32, 32)
        self.raw = nn.Parameter(torch.randn(32, 32))

    def forward(self, tokens):
        x = self.embedding(tokens).transpose(1, 2)
        x = self.circular(self.grouped(self.conv(x))).transpose(1, 2)
        if x.sum() > 0:
            x = x + 1
        for block in self.blocks:
            x = block(x)
        x = torch.tanh(self.shared(torch.tanh(self.twice(x))))
        return x @ self.raw + self.read(x) * self.read.weight.abs().mean()


class Experts(nn.Module):
    """Raw parameters of three dimensions, of which forward reads a piece at a time."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(3, 48, 32) / 6)
        self.second = nn.Parameter(torch.randn(3, 32, 48) / 6)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return sum(torch.tanh(x @ self.first[i].T) @ self.second[i].T for i in range(3))


class Transposed(nn.Module):
    """A linear layer of its own kind, with its weight the other way round."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32) / 6)
        self.bias = nn.Parameter(torch.zeros(32))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(x.shape)


class Assorted(nn.Module):
    """Modules of many kinds, none of them a plain layer, below a forward that branches on its input."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.experts = Experts()
        self.transposed = Transposed()
        self.recurrent = nn.LSTM(32, 16, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))
        self.shifted = nn.Module()
        self.shifted.gain = nn.Parameter(torch.ones(32, 32) + torch.randn(32, 32) / 100)
        self.wide = nn.Linear(32, 32, dtype=torch.float64)

    def forward(self, tokens):
        x = self.transposed(self.experts(self.embedding(tokens)))
        if x.sum() > 0:
            x = x + 1
        x, _ = self.recurrent(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.wide(self.normed(x @ self.shifted.gain).double())


def deployed_untraceable(compress=0.3, **options):
    torch.manual_seed(0)
    gm = fxhash.transform(Untraceable(), compress, seed=0)
    perturb(gm)
    return gm.eval(), fxhash.lower_for_deploy(gm, **options)


def tokens(*shape):
    return torch.randint(0, 50, shape)


@pytest.mark.parametrize("compress", [0.05, 0.3, 0.8])
@pytest.mark.parametrize(
    "options", [{}, {"methods": {"": "generate"}}, {"methods": {"": "cache"}}, {"memory_budget": "1GB"}]
)
def test_deployed_equals_transformed(compress, options):
    gm, deployed = deployed_untraceable(compress, **options)
    for x in (tokens(2, 9), tokens(1, 5), tokens(8, 40)):
        assert_same_outputs(gm, deployed, x)
    assert_same_outputs(gm, copy.deepcopy(deployed), tokens(2, 9))
    assert_same_outputs(gm, pickle.loads(pickle.dumps(deployed)), tokens(2, 9))


def test_each_layer_has_a_method_of_its_own():
    _, deployed = deployed_untraceable()
    uses = {use.fqn: use for use in deployed.smh_factors.plan.uses}
    assert uses["embedding.weight"].method == "factored"
    assert uses["conv.weight"].method == "factored"
    assert uses["grouped.weight"].method == uses["circular.weight"].method == "generate"
    assert uses["raw"].module is None
    assert all(use.module for fqn, use in uses.items() if fqn != "raw")
    (part,) = [module for module in deployed.modules() if isinstance(module, OpaqueModule)]
    assert not [name for name, _ in part.named_parameters() if name.endswith("weight")]
    assert isinstance(part.wrapped_module.conv, nn.Conv1d)
    assert part.wrapped_module.twice is part.wrapped_module.shared


@pytest.mark.parametrize("compress", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "options", [{}, {"methods": {"": "generate"}}, {"methods": {"": "cache"}}, {"memory_budget": "1GB"}]
)
def test_modules_of_any_kind_compute_their_weights(compress, options):
    gm = fxhash.transform(Assorted(), compress, seed=0)
    perturb(gm)
    gm.eval()
    deployed = fxhash.lower_for_deploy(gm, **options)
    for x in (tokens(2, 9), tokens(1, 5)):
        assert_same_outputs(gm, deployed, x)
    assert_same_outputs(gm, copy.deepcopy(deployed), tokens(2, 9))


def test_modules_of_any_kind_can_be_pickled():
    model = Assorted()
    # Torch itself refuses to pickle parametrized modules.
    model.normed = nn.Linear(32, 32)
    gm = fxhash.transform(model, 0.5, seed=0).eval()
    assert_same_outputs(gm, pickle.loads(pickle.dumps(fxhash.lower_for_deploy(gm))), tokens(2, 9))


def test_modules_of_any_kind_generate_when_they_are_called():
    model = Assorted()
    kinds = {path: type(module) for path, module in model.named_modules()}
    # Without the layer of double precision, which would let all factors be of its type.
    gm = fxhash.transform(model, 0.5, seed=0, exclude="^wide").eval()
    deployed = fxhash.lower_for_deploy(gm, memory_budget=0, methods={r"^attention\.": "factored"})
    assert_same_outputs(gm, deployed, tokens(2, 9))
    plan = deployed.smh_factors.plan
    assert {use.fqn for use in plan.uses if use.module is None} == set()
    methods = {use.fqn: use.method for use in plan.uses}
    assert methods["attention.in_proj_weight"] == methods["attention.out_proj.weight"] == "factored"
    assert methods["experts.first"] == methods["recurrent.weight_hh_l0_reverse"] == "generate"
    (part,) = [module for module in deployed.modules() if isinstance(module, OpaqueModule)]
    for path, module in part.wrapped_module.named_modules():
        assert isinstance(module, kinds[path])
    matrices = [name for name, parameter in part.wrapped_module.named_parameters() if parameter.dim() >= 2]
    assert matrices == ["wide.weight"]
    assert part.wrapped_module.experts.first.shape == (3, 48, 32)
    # At a time, there are the weights of one module, and of those around it.
    size = {use.fqn: use.memory_bytes for use in plan.uses}
    modules = ("experts.", "recurrent.", "normed.")
    totals = [sum(size[fqn] for fqn in size if fqn.startswith(module)) for module in modules]
    assert plan.peak_bytes == max(totals)


class ReadsWeight(nn.Module):
    """Reads its layer's weight in a forward that branches on its input: type and shape, and values if told to."""

    def __init__(self, layer, with_values):
        super().__init__()
        self.layer = layer
        self.with_values = with_values

    def forward(self, x):
        weight = self.layer.weight
        x = self.layer(x).to(weight.dtype) * weight.shape[0] if x.sum() > -1e6 else x
        return x + weight.flatten()[-1] + weight.detach().numpy().mean() if self.with_values else x


LAYERS = {
    "Embedding": (lambda: nn.Embedding(50, 32), lambda: tokens(2, 9)),
    "Linear": (lambda: nn.Linear(32, 64), lambda: torch.randn(2, 32)),
    "Conv1d": (lambda: nn.Conv1d(32, 64, 3), lambda: torch.randn(2, 32, 9)),
    "Conv2d": (lambda: nn.Conv2d(16, 64, 3), lambda: torch.randn(2, 16, 6, 6)),
    "Conv3d": (lambda: nn.Conv3d(8, 64, 2), lambda: torch.randn(2, 8, 4, 4, 4)),
}


def reading(name, with_values):
    layer, inputs = LAYERS[name]
    gm = fxhash.transform(ReadsWeight(layer(), with_values), 0.2, seed=0)
    perturb(gm)
    deployed = fxhash.lower_for_deploy(gm.eval(), methods={"": "factored"})
    (use,) = deployed.smh_factors.plan.uses
    assert use.method == "factored"
    assert use.module == "layer"
    return gm, deployed, inputs()


@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_of_a_factored_layer_can_be_read(name, with_values):
    gm, deployed, x = reading(name, with_values)
    assert_same_outputs(gm, deployed, x)


@pytest.mark.parametrize("name", ["Embedding", "Linear"])
def test_reading_the_type_of_a_factored_matrix_computes_nothing(name):
    """Language models read that of their output layer in each call, whose table is the largest weight."""
    _, deployed, _ = reading(name, with_values=False)
    (part,) = [module for module in deployed.modules() if isinstance(module, OpaqueModule)]
    with CountingOperators() as counted:
        weight = part.wrapped_module.layer.weight
        assert weight.dtype == torch.float32
        assert weight.dim() == 2
    assert not counted


def test_what_a_module_assigns_during_a_call_stays():
    deployed = fxhash.lower_for_deploy(fxhash.transform(Assorted(), 0.5, seed=0).eval())
    (part,) = [module for module in deployed.modules() if isinstance(module, OpaqueModule)]
    before = part.wrapped_module.experts.calls
    deployed(tokens(2, 9))
    assert part.wrapped_module.experts.calls == before + 1


def test_only_one_nested_weight_exists_at_a_time():
    _, deployed = deployed_untraceable(methods={"": "generate"})
    plan = deployed.smh_factors.plan
    sizes = {use.fqn: use.memory_bytes for use in plan.uses}
    largest = max(size for fqn, size in sizes.items() if fqn != "raw")
    assert plan.peak_bytes == sizes["raw"] + largest


def test_a_nested_table_is_never_materialized():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20_000, 64)

        def forward(self, x):
            return self.table(x) if x.sum() >= 0 else None

    gm = fxhash.transform(Looks(), 0.01, seed=0).eval()
    deployed = fxhash.lower_for_deploy(gm)
    with torch.inference_mode(), LargestTensor() as largest:
        deployed(torch.arange(10))
    assert 0 < largest.numel < 20_000 * 64 // 50
    assert_same_outputs(gm, deployed, torch.arange(10))


def test_lowering_leaves_the_transformed_model_as_it_is():
    gm, _ = deployed_untraceable()
    (part,) = [module for module in gm.modules() if isinstance(module, OpaqueModule)]
    assert type(part.wrapped_module.conv) is nn.Conv1d
    x = tokens(2, 9)
    before = gm(x)
    fxhash.lower_for_deploy(gm, memory_budget="40kB")
    assert torch.equal(gm(x), before)


def test_a_deployed_model_moves_and_converts_as_one():
    gm, deployed = deployed_untraceable()
    x = tokens(2, 9)
    torch.testing.assert_close(deployed.double()(x).float(), gm(x), rtol=1e-3, atol=1e-4)


class FirstTime(nn.Module):
    """Does something else in its first call, and forgets what it needed for that."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32) / 6)
        self.warm_up = nn.Linear(32, 32)
        self.factor = 2.0

    def forward(self, x):
        x = x @ self.weight
        if hasattr(self, "warm_up"):
            x = self.warm_up(x) * self.factor
            del self.warm_up, self.factor
        return x


def test_what_a_module_deletes_stays_deleted():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = FirstTime(), nn.Linear(32, 32)

        def forward(self, x):
            return self.last(self.first(x)) if x.sum() < 1e30 else x

    gm = fxhash.transform(Branches(), 0.5, exclude="warm_up", seed=0).eval()
    lowered = fxhash.lower_for_deploy(gm)
    assert "first" in {use.module for use in lowered.smh_factors.plan.uses}, "the case is not covered"
    x = torch.randn(4, 32)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(lowered(x), gm(x), rtol=1e-4, atol=1e-4)
