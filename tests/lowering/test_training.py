"""A model that is lowered for training is the transformed model: its parameters, its outputs and its gradients."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fxhash
from fxhash.lowering.analysis import plan_lowering
from fxhash.lowering.costs import Costs
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.factored_attention import TrainedMatrix
from fxhash.lowering.functional import adaptive_linear, factored_linear
from fxhash.lowering.lowering_options import LoweringOptions
from fxhash.lowering.method import Method
from fxhash.lowering.plan import Reader
from fxhash.lowering.separable import separable_conv
from fxhash.passes import TRAINING, lower_to_train
from fxhash.smh.regeneration import CAN_REGENERATE
from tests.helpers import assert_same_outputs, generator_of, run, smallest_transform, tensors_in
from tests.lowering.test_lowered_models import perturb
from tests.models import MODELS
from tests.strategies import random_models

every_model = pytest.mark.parametrize("name", MODELS)
SPLITTING = DeviceProfile(depthwise_product_cost=-1e6)


def transformed(name, compress=0.3):
    torch.manual_seed(0)
    model, inputs = MODELS[name]
    gm = smallest_transform(model(), compress, seed=0)
    perturb(gm)
    return gm, inputs()


def lowered(gm, device=None, method=None, passes=TRAINING):
    """Lowered for training as for a device, with one method for all plain layers that can have it."""
    plan = plan_lowering(gm, options=LoweringOptions(device, for_training=True))
    if method is not None:
        # Of no work, so that an adaptive layer generates its weight for any batch.
        free = Costs(generate=0, dense=0, factored=1)
        uses = [
            replace(use, method=method, costs=free) if use.method in _CHOICES and _may_adapt(use) else use
            for use in plan.uses
        ]
        plan = replace(plan, uses=tuple(uses))
    return lower_to_train(gm, plan, passes)


_CHOICES = (Method.FACTORED, Method.ADAPTIVE)


def _may_adapt(use):
    return use.reader in (Reader.LINEAR, Reader.CONVOLUTION)


def gradients(model, inputs, called=None):
    """The gradients of a weighted sum of all outputs, by name; under a fixed seed."""
    torch.manual_seed(1)
    random.seed(1)
    outputs = [each for each in tensors_in((called or model)(*inputs)) if each.requires_grad]
    generator = torch.Generator().manual_seed(2)
    sum((each * torch.randn(each.shape, generator=generator).to(each)).sum() for each in outputs).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    return found


def assert_trains_alike(gm, fast, inputs, rtol=1e-4):
    """Equal outputs and gradients, measured against the largest of each, and buffers that change alike."""
    assert_same_outputs(gm, fast, *inputs, rtol=rtol)
    state = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    expected = gradients(gm, inputs)
    after = {name: buffer.clone() for name, buffer in gm.named_buffers()}
    with torch.no_grad():
        for name, tensor in gm.state_dict().items():
            tensor.copy_(state.get(name, tensor))
    found = gradients(fast, inputs)
    assert found.keys() == expected.keys()
    largest = max((each.abs().max().item() for each in expected.values() if each is not None), default=0.0)
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, name
            continue
        own = max(gradient.abs().max().item(), 0.01 * largest)
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=rtol * own, msg=lambda text, name=name: f"{name}: {text}"
        )
    for name, buffer in fast.named_buffers():
        torch.testing.assert_close(buffer, after[name], rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@every_model
def test_outputs_and_gradients_are_those_of_the_transformed_model(name, training):
    gm, inputs = transformed(name)
    gm.train(training)
    assert_trains_alike(gm, fxhash.lower_for_training(gm), inputs)


@given(random_models(), st.sampled_from([0.1, 0.5]))
def test_random_models_train_alike(case, compress):
    model, x = case
    gm = smallest_transform(model, compress, seed=0)
    assert_trains_alike(gm, fxhash.lower_for_training(gm), (x,), rtol=1e-3)


FACTORED = (
    "SeparableConvolutions",
    "ResidualConvNet",
    "ConvCalledTwice",
    "TiedEmbedding",
    "Attention",
    "Conv1d",
    "Conv3d",
)


@pytest.mark.parametrize("method", _CHOICES)
@pytest.mark.parametrize("name", [*FACTORED, "TransformerEncoderLayer", "Conv2dReflect", "SharedStorage"])
def test_every_method_trains_alike(name, method):
    gm, inputs = transformed(name, 0.5)
    gm.double()
    inputs = tuple(each.double() if each.is_floating_point() else each for each in inputs)
    assert_trains_alike(gm, lowered(gm, SPLITTING, method), inputs, rtol=1e-9)


@pytest.mark.parametrize("name", FACTORED)
def test_any_first_few_passes_train_alike(name):
    gm, inputs = transformed(name)
    for count in range(len(TRAINING)):
        assert_trains_alike(gm, lowered(gm, SPLITTING, passes=TRAINING[:count]), inputs)


def test_layers_of_a_large_model_are_factored():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.BatchNorm2d(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
    )
    gm = fxhash.transform(model, 0.05, seed=0)
    fast = fxhash.lower_for_training(gm)
    targets = {node.target for node in fast.graph.nodes}
    assert targets >= {separable_conv, factored_linear}
    assert_trains_alike(gm, fast, (torch.randn(2, 3, 8, 8),), rtol=1e-3)


@every_model
def test_parameters_are_the_same_objects_and_the_input_is_left_untouched(name):
    gm, _ = transformed(name)
    code, nodes, meta = gm.code, [(node, node.args, node.kwargs) for node in gm.graph.nodes], dict(gm.meta)
    fast = fxhash.lower_for_training(gm)
    assert gm.code == code
    assert [(node, node.args, node.kwargs) for node in gm.graph.nodes] == nodes
    assert gm.meta == meta
    for each in ("parameters", "buffers"):
        own, other = (list(getattr(model, f"named_{each}")()) for model in (gm, fast))
        assert [name for name, _ in own] == [name for name, _ in other]
        assert all(one is another for (_, one), (_, another) in zip(own, other, strict=True))
    assert list(gm.state_dict()) == list(fast.state_dict())


@every_model
def test_what_works_on_the_transformed_model_works_on_it(name, tmp_path):
    gm, inputs = transformed(name)
    fast = fxhash.lower_for_training(gm)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    torch.manual_seed(0)
    sum(each.square().sum() for each in tensors_in(fast(*inputs)) if each.requires_grad).backward()
    optimizer.step()
    gm.eval()
    fast.eval()
    # NaN, where a step of this length leads to it, is stored as any other value.
    for number, each in enumerate((gm, fast)):
        fxhash.save(each, tmp_path / f"{number}.safetensors", allow_nan=True)
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    assert str(fxhash.summary(fast)) == str(fxhash.summary(gm))
    for function in (fxhash.lower_for_deploy, fxhash.materialize, fxhash.lower_for_training):
        for one, other in zip(run(function(gm), *inputs), run(function(fast), *inputs), strict=True):
            assert torch.equal(one, other) or one.isnan().any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", [*FACTORED, "LSTM", "BranchesOnInput", "RawParameters", "EveryNorm"])
def test_copies_are_trained_and_deployed_alike(name, copied):
    gm, inputs = transformed(name)
    again = copied(fxhash.lower_for_training(gm))
    assert not {id(each) for each in again.parameters()} & {id(each) for each in gm.parameters()}
    assert_same_outputs(fxhash.lower_for_deploy(gm), fxhash.lower_for_deploy(again), *inputs)
    assert_trains_alike(gm, again, inputs)


def test_a_model_that_holds_a_transformed_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), fxhash.transform(nn.Linear(32, 32), 0.3, seed=0))
    fast = fxhash.lower_for_training(model)
    assert fast is not model
    assert any(node.target is factored_linear for node in fast[1].graph.nodes)
    assert_trains_alike(model, fast, (torch.randn(4, 16),))
    assert_same_outputs(fxhash.lower_for_deploy(model), fxhash.lower_for_deploy(fast), torch.randn(4, 16))


def test_what_is_lowered_for_deployment_or_not_transformed_is_refused():
    gm, _ = transformed("FunctionalDropout")
    with pytest.raises(fxhash.TransformError, match="lowered already"):
        fxhash.lower_for_training(fxhash.lower_for_deploy(gm))
    with pytest.raises(fxhash.TransformError, match="expected the result of"):
        fxhash.lower_for_training(nn.Linear(3, 3))


def test_a_model_with_an_attribute_of_the_generators_name():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.smh_generator = nn.Linear(32, 64)

        def forward(self, x):
            return self.smh_generator(x) if x.sum() < 1e30 else x

    gm = fxhash.transform(Opaque(), 0.5, seed=0, capture="modules")
    x = torch.randn(3, 32)
    for form in (fxhash.lower_for_training, fxhash.lower_for_deploy, fxhash.materialize):
        assert_same_outputs(gm, form(gm), x)


def test_a_constant_that_is_loaded_later_is_refused():
    gm, inputs = transformed("FunctionalDropout")
    fast = fxhash.lower_for_training(gm)
    before = {name: value.clone() for name, value in fast.state_dict().items()}
    fast.load_state_dict(before)
    state = {name: value + 1 for name, value in before.items()}
    refused = pytest.raises(fxhash.TransformError, match=r"constant to 'first\.weight'.*lower it then")
    with refused:
        fast.load_state_dict(state)
    torch.testing.assert_close(dict(fast.state_dict()), before, rtol=0, atol=0)
    fast(*inputs)
    gm.load_state_dict(state)
    for _ in range(2):
        with refused:
            fast(*inputs)
    assert_trains_alike(gm, fxhash.lower_for_training(gm), inputs)
    gm.load_state_dict(before)
    assert_trains_alike(gm, fast, inputs)


def test_modes_work_as_before():
    gm, inputs = transformed("ResidualConvNet")
    fast = fxhash.lower_for_training(gm)
    assert fast.training
    before = fast.norm.running_mean.clone()
    fast(*inputs)
    assert not torch.equal(fast.norm.running_mean, before)
    fast.eval()
    before = fast.norm.running_mean.clone()
    assert torch.equal(fast(*inputs), fast(*inputs))
    assert torch.equal(fast.norm.running_mean, before)
    gm, inputs = transformed("FunctionalDropout")
    fast = fxhash.lower_for_training(gm.eval())
    assert torch.equal(fast(*inputs), fast(*inputs))
    fast.train()
    assert not torch.equal(fast(*inputs), fast(*inputs))
    assert_trains_alike(gm.train(), fast, inputs)


# What is kept until backward.


regenerates = pytest.mark.skipif(not CAN_REGENERATE, reason="before torch 2.7, weights are kept until backward")

GENERATED = ("ConvCalledTwice", "RawParameters", "StarArguments", "Conv2dSamePadding", "ConvTranspose2d", "TwoInputs")


@regenerates
@pytest.mark.parametrize("name", [*GENERATED, "SeparableConvolutionOfLargeMean", "BranchesOnInput"])
def test_no_generated_weight_is_kept_until_backward(name):
    gm, inputs = transformed(name, 0.5)
    inputs = tuple(each.requires_grad_() for each in inputs)
    sizes = {size for each in generator_of(gm).plan.hashed for size in (each.numel, each.slice_numel)}
    assert kept(gm, inputs) & sizes, "the check can't fail"
    assert not kept(fxhash.lower_for_training(gm), inputs) & sizes


def kept(model, inputs, called=None):
    """The sizes of all that autograd keeps which is neither input nor parameter, as a set."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers(), *inputs)}
    found = set()

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            found.add(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        (called or model)(*inputs)
    return found


@regenerates
def test_nothing_of_a_layer_is_kept_under_autocast():
    torch.manual_seed(0)
    gm = fxhash.transform(nn.Linear(37, 53), 0.9, seed=0)
    x = torch.randn(1000, 37, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert 37 * 53 in kept(gm, (x,))
        fast = lowered(gm)
        assert 37 * 53 not in kept(fast, (x,))


def test_a_checkpoint_keeps_its_inputs_alone():
    gm, (x,) = transformed("ConvCalledTwice")
    fast = fxhash.lower_for_training(gm)
    x.requires_grad_()
    expected = gradients(gm, (x,))
    # Hooks around a model, as those of a checkpoint are, see what a layer keeps besides its weight.
    activation = x.numel()
    assert activation in kept(fast, (x,))
    assert kept(fast, (x,), partial(checkpoint, fast, use_reentrant=False)) <= {activation}
    again = gradients(fast, (x,), partial(checkpoint, fast, use_reentrant=False))
    for name, gradient in expected.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_value_that_is_changed_after_it_was_kept_is_noticed():
    class Changes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="zeros", groups=2)

        def forward(self, x):
            x = x * 2
            y = self.conv(x)
            x.add_(1)
            return y + x

    gm = smallest_transform(Changes(), 0.9, seed=0)
    for each in (gm, fxhash.lower_for_training(gm)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            each(torch.randn(2, 4, 5, 5)).sum().backward()


# Beside other tools.


@pytest.mark.parametrize("name", [*FACTORED, *GENERATED])
def test_under_autocast(name):
    gm, inputs = transformed(name)
    fast = fxhash.lower_for_training(gm)

    def autocast(model):
        def call(*given):
            with torch.autocast("cpu", torch.bfloat16):
                return model(*given)

        return call

    exact = gradients(gm, inputs)
    expected, found = (gradients(each, inputs, autocast(each)) for each in (gm, fast))
    outputs = [tensors_in(autocast(each.eval())(*inputs)) for each in (gm, fast)]
    for one, other in zip(*outputs, strict=True):
        assert one.dtype == other.dtype
    largest = max(each.abs().max().item() for each in exact.values() if each is not None)
    for key, gradient in exact.items():
        if gradient is None:
            continue
        assert found[key].dtype == gradient.dtype
        # As near to the exact gradient as that of the transformed model, which rounds elsewhere.
        error, usual = ((each[key] - gradient).abs().max().item() for each in (found, expected))
        assert error <= 3 * usual + 0.02 * largest, key


@pytest.mark.parametrize("name", [*FACTORED[:4], *GENERATED])
def test_gradients_of_gradients(name):
    gm, inputs = transformed(name)
    gm.double().eval()
    inputs = tuple(each.double() if each.is_floating_point() else each for each in inputs)

    def penalty(model):
        trained = [each for each in model.parameters() if each.requires_grad]
        loss = sum(each.sin().sum() for each in tensors_in(model(*inputs)))
        first = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
        return torch.autograd.grad(
            sum(each.square().sum() for each in first if each is not None), trained, allow_unused=True
        )

    for one, other in zip(penalty(gm), penalty(fxhash.lower_for_training(gm)), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["ResidualConvNet", "TiedEmbedding", "SeparableConvolutions", "RawParameters"])
def test_functional_calls_and_gradients_of_each_sample(name):
    gm, inputs = transformed(name)
    gm.eval()
    fast = fxhash.lower_for_training(gm)
    state = {key: value.detach() + 0.01 for key, value in gm.named_parameters()}

    def loss(parameters, x, model):
        return torch.func.functional_call(model, parameters, (x.unsqueeze(0),)).square().sum()

    def of_each(model):
        return torch.func.vmap(torch.func.grad(lambda parameters, x: loss(parameters, x, model)), (None, 0))(
            state, *inputs
        )

    torch.testing.assert_close(of_each(fast), of_each(gm), rtol=1e-3, atol=1e-4)


class FiltersFrequencies(nn.Module):
    """Multiplies by complex numbers, as which it views its weight."""

    def __init__(self):
        super().__init__()
        self.filter, self.out = nn.Parameter(torch.randn(16, 5, 2)), nn.Linear(8, 64)

    def forward(self, x):
        spectrum = torch.fft.rfft(x) * torch.view_as_complex(self.filter)
        return self.out(torch.fft.irfft(spectrum, n=8))


@pytest.mark.parametrize("capture", ["trace", "modules"])
def test_complex_views_of_a_weight(capture):
    gm = fxhash.transform(FiltersFrequencies().double(), 0.7, seed=0, capture=capture)
    assert_trains_alike(gm, fxhash.lower_for_training(gm), [torch.randn(3, 16, 8, dtype=torch.float64)])


# Embeddings.


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"padding_idx": -3}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("shape", [(200, 16), (24, 48)])
def test_what_an_embedding_does_to_its_gradients(options, shape):
    model = nn.Sequential(nn.Embedding(*shape, **options), nn.Linear(shape[1], 8)).double()
    gm = fxhash.transform(model, 0.3, seed=0)
    indices = torch.tensor([[0, 0, 0, 5, 5, shape[0] - 3], [1, 1, 2, 3, 9, 9]])

    def gradients(model):
        return torch.autograd.grad(model(indices).square().sum(), tuple(gm.parameters()))

    torch.testing.assert_close(gradients(fxhash.lower_for_training(gm)), gradients(gm))


# Attention.


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", ["", "boolean", "added", "for each head", "padding", "both"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_with_trained_matrices_is_that_of_torch(batch_first, masked, need_weights):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, dropout=0.2, dtype=torch.float64)
    left = [torch.randn(rows, 3, dtype=torch.float64, requires_grad=True) for rows in (48, 16)]
    right = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    masks = {
        "boolean": {"attn_mask": causal},
        "added": {"attn_mask": torch.zeros(5, 5, dtype=torch.float64).masked_fill(causal, -1.5)},
        "for each head": {"attn_mask": causal.expand(8, 5, 5)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
    }.get(masked, {})

    def call(matrices):
        weights = dict(zip(("in_proj_weight", "out_proj.weight"), matrices, strict=True))
        torch.manual_seed(3)
        outputs, weights = torch.func.functional_call(
            attention, weights, (x, x, x), {"need_weights": need_weights, **masks}
        )
        assert (weights is None) is not need_weights
        outputs.sin().sum().backward()
        found = [outputs.detach(), *(each.grad for each in (*left, right, attention.in_proj_bias))]
        for each in (*left, right, attention.in_proj_bias):
            each.grad = None
        return found

    dense = call([each @ right for each in left])
    shapes = [(each.shape[0], 16) for each in left]
    torch.testing.assert_close(
        call([TrainedMatrix(each, right, shape) for each, shape in zip(left, shapes, strict=True)]), dense
    )


# Separable convolutions, whose channels come last.


@given(
    dimensions=st.sampled_from([1, 2, 3]),
    channels=st.integers(1, 5),
    out=st.integers(1, 5),
    count=st.integers(1, 3),
    per_row=st.sampled_from([0.5, 1.0, 2.0]),
    stride=st.integers(1, 2),
    most=st.sampled_from([-1, 10**9]),
    batched=st.booleans(),
)
def test_a_separable_convolution_is_one_with_the_weight(
    dimensions, channels, out, count, per_row, stride, most, batched
):
    cols = int(channels * count * per_row) if (channels * count * per_row).is_integer() else channels * count
    rows = -(-out * channels * count // cols)
    random = torch.Generator().manual_seed(0)
    left, right, kernels, x, bias = (
        torch.randn(*size, generator=random, dtype=torch.float64)
        for size in (
            (rows, 2),
            (3, cols),
            (count, 2**dimensions),
            (*[2] * batched, channels, *[4] * dimensions),
            (out,),
        )
    )
    shape = (out, channels, *[2] * dimensions)
    product = (left @ right[:2]).flatten()[: out * channels * count]
    weight = (product.view(-1, count) @ kernels).view(shape)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1]
    torch.testing.assert_close(
        separable_conv(x, left, right, kernels, shape, bias, stride, 1, 1, most),
        convolution(x, weight, bias, stride, 1),
    )


class ViewsAfterConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 16, 2000)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = x + self.again(x)
        return self.head(x.view(x.shape[0], -1)), x.view(-1), x


def test_values_whose_channels_come_last_are_contiguous_where_that_matters():
    torch.manual_seed(0)
    gm, x = fxhash.transform(ViewsAfterConvolutions(), 0.1, seed=0), torch.randn(3, 12, 4, 4)
    fast = lowered(gm, SPLITTING)
    assert sum(node.target is separable_conv for node in fast.graph.nodes) == 2
    assert_trains_alike(gm, fast, (x,))
    for one, other in zip(gm(x), fast(x), strict=True):
        assert one.stride() == other.stride()
    seen = []
    fast.norm.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    fast(x)[0].sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_adaptive_layers_choose_by_the_size_of_the_batch():
    torch.manual_seed(0)
    gm = fxhash.transform(nn.Linear(64, 64), 0.9, seed=0)
    fast = fxhash.lower_for_training(gm)
    (use,) = plan_lowering(gm, options=LoweringOptions(for_training=True)).uses
    assert use.method is Method.ADAPTIVE
    assert any(node.target is adaptive_linear for node in fast.graph.nodes)
    for positions in (use.costs.max_positions, use.costs.max_positions + 1):
        sizes = kept(fast, (torch.randn(positions, 64, requires_grad=True),))
        assert 64 * 64 not in sizes or not CAN_REGENERATE
        assert_trains_alike(gm, fast, (torch.randn(positions, 64),), rtol=1e-3)
