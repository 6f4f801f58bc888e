"""A lowered model overflows nowhere where the transformed one doesn't, and is as exact, whatever its type."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fxhash
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.convolution import depthwise
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.functional import factored_conv, factored_linear
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.lowering.method import Method
from fxhash.passes import lower
from fxhash.smh.arithmetic import generate
from tests.helpers import generator_of, may_be_opaque, skip_unless_backend_runs

pytestmark = may_be_opaque

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
every_type = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_method = pytest.mark.parametrize("method", ["chosen", "factored", "generate", "cache"])


class Nested(nn.Module):
    """Layers in a module that can't be traced: each computes its weight when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.conv = nn.Conv1d(16, 64, 3, padding=1)
        self.out = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0 or bool(x.isnan().any()):
            return x
        return self.out(self.conv(self.linear(x)).transpose(1, 2))


class Attended(nn.Module):
    """Attention, whose weights are factored tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def norm_after(convolution: nn.Module) -> nn.Module:
    """A convolution whose outputs are far from their running mean and of another size than the running variance."""
    norm = nn.BatchNorm2d(convolution.out_channels)
    norm.running_mean.uniform_(-20, 20)
    norm.running_var.uniform_(100, 1000)
    return nn.Sequential(convolution, norm)


# Each layer, its options for `transform`, and an input.
LAYERS = {
    "Linear, rows within channels": (lambda: nn.Linear(1024, 256), {}, lambda: torch.randn(3, 1024)),
    "Linear, channels within rows": (lambda: nn.Linear(64, 512), {"aspect": 0.1}, lambda: torch.randn(3, 64)),
    "Conv1d": (lambda: nn.Conv1d(64, 64, 3), {}, lambda: torch.randn(2, 64, 9)),
    "Conv2d": (
        lambda: nn.Conv2d(64, 64, 3, stride=2),
        {"separable": False, "aspect": 1.0},
        lambda: torch.randn(2, 64, 7, 7),
    ),
    "Conv2d, channels within rows": (
        lambda: nn.Conv2d(8, 64, 3, padding=1),
        {"separable": False, "aspect": 0.05},
        lambda: torch.randn(2, 8, 5, 5),
    ),
    "Conv3d": (
        lambda: nn.Conv3d(32, 32, 2),
        {"separable": False, "aspect": 1.0},
        lambda: torch.randn(1, 32, 3, 3, 3),
    ),
    "separable": (lambda: nn.Conv2d(256, 64, 3), {}, lambda: torch.randn(1, 256, 4, 4)),
    "separable, then a norm": (lambda: norm_after(nn.Conv2d(256, 64, 3)), {}, lambda: torch.randn(1, 256, 4, 4)),
    "Conv2d, then a norm": (
        lambda: norm_after(nn.Conv2d(64, 64, 3)),
        {"separable": False, "aspect": 1.0},
        lambda: torch.randn(2, 64, 5, 5),
    ),
    "Embedding": (lambda: nn.Embedding(500, 64), {}, lambda: torch.arange(20).view(4, 5)),
    "attention": (Attended, {}, lambda: torch.randn(2, 5, 64)),
    "nested": (Nested, {}, lambda: torch.randn(2, 16, 64)),
    "GRU": (lambda: nn.GRU(64, 64), {}, lambda: torch.randn(3, 2, 64)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def transformed(name: str) -> tuple[torch.fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    layer, options, inputs = LAYERS[name]
    return fxhash.transform(layer(), 0.1, seed=0, **options).eval(), inputs()


def called(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result = model(x)
    return result[0] if isinstance(result, tuple) else result


def lowered_by(method: str, gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    if method == "chosen":
        return fxhash.lower_for_deploy(gm)
    names = [parameter.fqn for parameter in generator_of(gm).plan.hashed]
    if method == "factored":
        plan = plan_lowering(gm)
        names = [use.fqn for use in plan.uses if use.costs.factored is not None]
    return fxhash.lower_for_deploy(gm, methods={f"^{re.escape(name)}$": method for name in names})


def largest_input(gm: torch.fx.GraphModule, x: Tensor) -> Tensor:
    """The input times the largest power of two with which neither it nor the output of the model overflows."""
    for exponent in range(15, 0, -1):
        scaled = x * 2.0**exponent
        if scaled.isfinite().all() and called(gm, scaled).isfinite().all():
            return scaled
    raise AssertionError("the model overflows for ordinary inputs")


def assert_as_exact(reference: Tensor, of_transformed: Tensor, of_lowered: Tensor) -> None:
    """The lowered model's error is of the size of the transformed one's, or of the type's rounding."""
    largest = reference.abs().max().item()
    # Of the wider types, the sums are rounded more than the result.
    roundings = 4 if of_transformed.dtype.itemsize == 2 else 64
    allowed = roundings * torch.finfo(of_transformed.dtype).eps * largest
    error = (of_transformed.double() - reference).abs().max().item()
    assert of_lowered.dtype == of_transformed.dtype
    assert bool(of_lowered.isfinite().all()), f"{int((~of_lowered.isfinite()).sum())} of {of_lowered.numel()} overflow"
    assert (of_lowered.double() - reference).abs().max().item() <= max(allowed, 2 * error)


@every_layer
@every_method
@every_type
def test_lowered_overflows_nowhere_where_transformed_does_not(name, method, dtype):
    gm, x = transformed(name)
    gm.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    skip_unless_backend_runs(lambda: called(LAYERS[name][0]().to(dtype).eval(), x))
    lowered = lowered_by(method, gm)
    for given_x in (x, x / 64, largest_input(gm, x)) if x.is_floating_point() else (x,):
        exact_x = given_x.double() if given_x.is_floating_point() else given_x
        reference = called(fxhash.materialize(gm).double(), exact_x)
        assert_as_exact(reference, called(gm, given_x), called(lowered, given_x))


@every_layer
def test_under_autocast_in_float16_too(name):
    gm, x = transformed(name)
    lowered = fxhash.lower_for_deploy(gm)
    with torch.autocast("cpu", dtype=torch.float16):
        skip_unless_backend_runs(lambda: called(LAYERS[name][0]().eval(), x))
        largest = largest_input(gm, x.half()).float() if x.is_floating_point() else x
        expected, actual = called(gm, largest), called(lowered, largest)
    reference = called(fxhash.materialize(gm).double(), largest.double() if largest.is_floating_point() else largest)
    assert_as_exact(reference, expected, actual)


def normed(**statistics: float) -> torch.fx.GraphModule:
    """A float16 convolution and the norm after it, whose statistics and size are set to numbers; transformed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16, eps=statistics["eps"]))
    gm = fxhash.transform(model, 0.3, seed=0, separable=False, aspect=1.0).half().eval()
    norm = gm.get_submodule("1")
    with torch.no_grad():
        for name in statistics.keys() - {"eps"}:
            getattr(norm, name).fill_(statistics[name])
    return gm


@pytest.mark.parametrize("method", ["chosen", "generate", "cache"])
@pytest.mark.parametrize(
    ("statistics", "is_folded"),
    [
        ({"running_var": 1e-4, "eps": 1e-5}, True),
        # The sum of variance and eps rounds to zero in float16.
        ({"running_var": 0.0, "eps": 1e-8}, True),
        # The scale is 1e6.
        ({"running_var": 0.0, "eps": 1e-12, "weight": 1e-3}, True),
        ({"running_var": 0.0, "eps": 1e-12}, False),
        # The bias would be -100 * 1000.
        ({"running_mean": 100.0, "running_var": 0.0, "eps": 1e-6}, False),
        # The weights would be 0.1 * 1e3 * 1e4.
        ({"running_var": 0.0, "eps": 1e-6, "weight": 1e4}, False),
    ],
)
def test_norms_fold_in_float16_where_that_overflows_nowhere(statistics, is_folded, method):
    gm = normed(**statistics)
    lowered = lowered_by(method, gm)
    assert all(bool(use.folded_norm) is is_folded for use in lowered.smh_factors.plan.uses)
    assert all(parameter.isfinite().all() for parameter in lowered.parameters())
    x = (1e-3 * torch.randn(2, 16, 5, 5)).half()
    for scale in (0.0, 1.0):
        expected = called(gm, scale * x)
        finite = expected.isfinite()
        if finite.any():
            largest = expected[finite].abs().max().item()
            actual = called(lowered, scale * x)[finite]
            torch.testing.assert_close(actual, expected[finite], rtol=2e-2, atol=2e-2 * largest)


@given(st.sampled_from(["linear", "convolution"]), st.integers(1, 4), st.integers(-8, 8), st.booleans())
def test_factors_of_any_sizes_that_cancel(kind, rank, exponent, channels_within_rows):
    """Trained factors may be large where the other is small, and their products may cancel."""
    cols = 64 if channels_within_rows else 8
    shape = (32, 16) if kind == "linear" else (32, 4, 4)
    left, right = torch.randn(512 // cols, rank, dtype=torch.double), torch.randn(rank, cols, dtype=torch.double)
    left, right = torch.cat([left, -left], 1), torch.cat([right, right + 0.01 * torch.randn_like(right)])
    left, right = (left / 2.0**exponent).half(), (right * 2.0**exponent).half()
    weight = generate(left.double(), right.double(), shape)
    x = 1000 * torch.randn((3, 16) if kind == "linear" else (3, 4, 6)).half()
    actual = (factored_linear if kind == "linear" else factored_conv)(x, left, right, shape)
    reference = (F.linear if kind == "linear" else F.conv1d)(x.double(), weight)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.double(), reference, rtol=1e-3, atol=1e-3 * reference.abs().max().item() + 0.1)


@pytest.mark.parametrize("method", [None, Method.GENERATE, Method.CACHE])
def test_the_halves_of_a_separable_convolution_are_balanced_exactly(method):
    """However large its kernels are, the first half gives nothing larger than its input, and nothing is rounded."""
    torch.manual_seed(0)
    gm = fxhash.transform(nn.Conv2d(32, 32, 3, bias=False), 0.05, seed=0).eval().requires_grad_(False)
    generator = generator_of(gm)
    (parameter,) = generator.plan.hashed
    assert parameter.kernels
    requested = {} if method is None else {parameter.fqn: method}
    x, outputs = torch.randn(2, 32, 5, 5), []
    for factor in (1.0, 2.0**20, 2.0**-20):
        generator.kernels_of(parameter.fqn).mul_(factor)
        split = lower(
            gm, plan_lowering(gm, requested, options=LoweringOptions(DeviceProfile(depthwise_cost=0.0, call_cost=0.0)))
        )
        generator.kernels_of(parameter.fqn).div_(factor)
        (first,) = (node for node in split.graph.nodes if node.target is depthwise)
        assert 0.5 <= split.smh_factors(first.args[1].args[0]).abs().sum(1).max() < 1
        outputs.append(split(x) / factor)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("method", ["chosen", "generate", "cache"])
@pytest.mark.parametrize("separable", [True, False])
def test_norms_in_float32_fold_into_convolutions_in_16_bits(separable, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64)).bfloat16()
    model[1].float().running_mean.normal_()
    gm = fxhash.transform(model, 0.3, seed=0, separable=separable).eval()
    methods = None if method == "chosen" else {"0.weight": method}
    lowered = fxhash.lower_for_deploy(gm, methods=methods)
    assert lowered.smh_factors.plan.uses[0].folded_norm
    x = torch.randn(2, 8, 6, 6, dtype=torch.bfloat16)
    assert_as_exact(fxhash.materialize(gm).double()(x.double()), gm(x), lowered(x))
