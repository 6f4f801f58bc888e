"""PyTorch's own tools for training, on transformed models: each does what it does to a dense model."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import fxhash
from fxhash.graph.names import original_name
from tests.helpers import (
    CountingOperators,
    assert_same_outputs,
    generator_of,
    may_be_opaque,
    run,
    skip_unless_backend_runs,
    smallest_transform,
)
from tests.models import MODELS, ResidualConvNet


class ConvNet(nn.Module):
    """Convolutions without batch norm, so that no sample depends on the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.body = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + F.relu(self.body(x))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    """One block with its attention written out, so that it is traced, and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.positions = nn.Parameter(torch.randn(5, 16) / 4)
        self.norm = nn.LayerNorm(16)
        self.queries_keys_values = nn.Linear(16, 48)
        self.mix = nn.Linear(16, 16)
        self.feed_forward = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        self.head = nn.Linear(16, 30)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions
        queries, keys, values = self.queries_keys_values(self.norm(x)).chunk(3, -1)
        attention = (queries @ keys.transpose(-1, -2) / 4).softmax(-1)
        x = x + self.mix(attention @ values)
        return self.head(x + self.feed_forward(x))


CASES = {
    "ConvNet": (ConvNet, lambda: (torch.randn(4, 3, 6, 6),)),
    "Transformer": (Transformer, lambda: (torch.randint(0, 30, (4, 5)),)),
    **{name: MODELS[name] for name in ("ResidualConvNet", "TiedEmbedding", "LSTM", "BranchesOnInput", "RawParameters")},
}
# Those that can run under `vmap`: it follows no control flow on values, and torch has no rule for recurrent layers.
BATCHABLE = [name for name in CASES if name not in ("LSTM", "BranchesOnInput")]

every_case = pytest.mark.parametrize("name", CASES)
every_batchable_case = pytest.mark.parametrize("name", BATCHABLE)


def build(name, seed=0):
    torch.manual_seed(0)
    model, inputs = CASES[name]
    return smallest_transform(model(), 0.5, seed=seed), inputs()


def loss_of(model, *inputs):
    return sum(output.float().square().mean() for output in tree_leaves(model(*inputs)))


def train(model, optimizer, inputs, steps=3):
    """Train on one batch; returns the loss before each step."""

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, *inputs)
        loss.backward()
        return loss

    return [optimizer.step(closure).item() for _ in range(steps)]


def gradients_of(model):
    return {original_name(name): parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(first, second):
    expected, actual = gradients_of(first), gradients_of(second)
    assert expected["smh_generator.right"].abs().sum() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@every_case
def test_autocast_is_that_of_the_dense_model(name):
    """The same loss, and the factors' gradients are the dense weights' gradients, taken through the product."""
    gm, inputs = build(name)
    original = CASES[name][0]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        skip_unless_backend_runs(lambda: loss_of(original, *inputs).backward())
    dense, generator = fxhash.materialize(gm), generator_of(gm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, expected = loss_of(gm, *inputs), loss_of(dense, *inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    expected.backward()
    reached = {parameter.fqn: dense.get_parameter(parameter.fqn).grad for parameter in generator.plan.hashed}
    reached = {fqn: gradient for fqn, gradient in reached.items() if gradient is not None}
    factors = [parameter for parameter in generator.parameters() if parameter.grad is not None]
    gradients = torch.autograd.grad([generator(fqn) for fqn in reached], factors, list(reached.values()))
    for factor, gradient in zip(factors, gradients, strict=True):
        # The gradients of a layer that is called twice are added in bfloat16 if it is dense.
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-2, atol=1e-2 * gradient.abs().max().item())


@pytest.mark.parametrize(
    ("name", "use_reentrant"),
    [
        *((name, False) for name in CASES),
        *((name, True) for name in ("ConvNet", "ResidualConvNet", "BranchesOnInput", "RawParameters")),
    ],
)
def test_checkpointing_a_whole_model(name, use_reentrant):
    gm, inputs = build(name)
    if use_reentrant:
        # This form needs an input that requires a gradient, which tokens can't.
        inputs[0].requires_grad_()
    checkpointed = copy.deepcopy(gm)
    loss_of(gm, *inputs).backward()
    loss_of(lambda *args: checkpoint(checkpointed, *args, use_reentrant=use_reentrant), *inputs).backward()
    assert_same_gradients(gm, checkpointed)


def bytes_kept(forward):
    """Bytes that autograd keeps for backward, each storage counted once."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    loss.backward()
    return sum(kept.values())


def test_a_checkpointed_model_keeps_no_generated_weight_until_backward():
    gm = fxhash.transform(nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 100)), 0.05)
    x = torch.randn(1, 100, requires_grad=True)
    both_weights = 2 * 100 * 200 * 4
    assert bytes_kept(lambda: gm(x).sum()) > both_weights
    with CountingOperators() as counted:
        assert bytes_kept(lambda: checkpoint(gm, x, use_reentrant=False).sum()) < both_weights / 100
    assert counted["aten.relu"] == 2, "once in forward, once more in backward"


class CheckpointedBlock(nn.Module):
    """Checkpoints a block in its own forward, if it is told how."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.options = options
        self.first = nn.Linear(16, 16)
        self.block = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
        self.last = nn.Linear(16, 16)

    def forward(self, x):
        x = self.first(x)
        x = checkpoint(self.block, x, **self.options) if self.options else self.block(x)
        return self.last(x)


# The reentrant form asks whether an input requires a gradient, and warns that the tracer's stand-in for one doesn't.
without_stand_in_warning = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")


@may_be_opaque
@without_stand_in_warning
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_model_that_checkpoints_a_block_has_the_same_gradients(use_reentrant):
    models = []
    for options in ({}, {"use_reentrant": use_reentrant}):
        torch.manual_seed(0)
        models.append(fxhash.transform(CheckpointedBlock(**options), 0.6, seed=0))
    x = torch.randn(4, 16)
    for model in models:
        loss_of(model, x).backward()
    assert_same_gradients(*models)


@may_be_opaque
@without_stand_in_warning
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_block_that_is_checkpointed_runs_again_in_backward(use_reentrant):
    model = CheckpointedBlock(use_reentrant=use_reentrant)
    for each in (model, fxhash.transform(model, 0.6)):
        with CountingOperators() as counted:
            loss = loss_of(each, torch.randn(4, 16))
            assert counted["aten.tanh"] == 1
            loss.backward()
        assert counted["aten.tanh"] == 2


def average_by_hand(history, kind):
    """The mean of all snapshots, or an exponential one with decay 0.9 that starts at the first."""
    average = dict(history[0])
    for count, snapshot in enumerate(history[1:], start=1):
        weight = 1 / (count + 1) if kind == "SWA" else 0.1
        average = {name: torch.lerp(average[name], snapshot[name], weight) for name in average}
    return average


@every_case
@pytest.mark.parametrize("kind", ["EMA", "SWA"])
def test_averaged_models(name, kind, tmp_path):
    """Factors are averaged; the averaged model is deployed, saved and loaded like any other."""
    gm, inputs = build(name)
    averaged = AveragedModel(gm, multi_avg_fn=get_ema_multi_avg_fn(0.9) if kind == "EMA" else get_swa_multi_avg_fn())
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.01)
    history = []
    for _ in range(3):
        train(gm, optimizer, inputs, steps=1)
        averaged.update_parameters(gm)
        history.append({name: parameter.detach().clone() for name, parameter in gm.named_parameters()})
    actual = {name: parameter.detach() for name, parameter in averaged.module.named_parameters()}
    torch.testing.assert_close(actual, average_by_hand(history, kind))
    averaged.eval()
    assert_same_outputs(averaged, fxhash.lower_for_deploy(averaged.module), *inputs)
    fxhash.save(averaged.module, tmp_path / "averaged.safetensors")
    loaded = fxhash.load(tmp_path / "averaged.safetensors", CASES[name][0]().eval())
    assert_same_outputs(averaged, loaded, *inputs, rtol=0)


def test_statistics_of_batch_norm_are_updated_for_averaged_weights():
    gm = fxhash.transform(ResidualConvNet(), 0.5)
    averaged = AveragedModel(gm)
    averaged.update_parameters(gm)
    batches = [torch.randn(8, 3, 6, 6) + 1 for _ in range(2)]
    update_bn(batches, averaged)
    stem = generator_of(gm)("stem.weight")
    expected = torch.stack([F.conv2d(batch, stem, padding=1).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(averaged.module.norm.running_mean, expected, rtol=1e-4, atol=1e-5)


def state_of(gm):
    """Copies of parameters and buffers, in one dictionary."""
    return {name: tensor.detach().clone() for name, tensor in (*gm.named_parameters(), *gm.named_buffers())}


@every_case
def test_functional_call_uses_the_factors_that_it_is_given(name):
    gm, inputs = build(name, seed=0)
    other, _ = build(name, seed=1)
    actual = tree_leaves(functional_call(gm, state_of(other), inputs))
    torch.testing.assert_close(actual, run(other, *inputs))
    assert not torch.equal(actual[0], run(gm, *inputs)[0])


@every_batchable_case
def test_gradients_of_each_sample(name):
    gm, inputs = build(name)
    gm.eval()
    state, parameters = state_of(gm), {name: each.detach() for name, each in gm.named_parameters()}

    def loss(parameters, *sample):
        batch_of_one = [x.unsqueeze(0) for x in sample]
        return loss_of(lambda *inputs: functional_call(gm, state | parameters, inputs), *batch_of_one)

    samples = vmap(grad(loss), (None, *(0 for _ in inputs)))(parameters, *inputs)
    for index in range(len(inputs[0])):
        gm.zero_grad()
        loss_of(gm, *(x[index : index + 1] for x in inputs)).backward()
        for each, parameter in gm.named_parameters():
            torch.testing.assert_close(samples[each][index], parameter.grad, rtol=1e-4, atol=1e-6)


@every_batchable_case
def test_an_ensemble_in_one_call(name):
    """`stack_module_state` asks for models of one class, and every graph module has its own: hence `Sequential`."""
    members = [nn.Sequential(build(name, seed)[0].eval()) for seed in range(3)]
    _, inputs = build(name)
    parameters, buffers = stack_module_state(members)
    stacked = vmap(lambda *state: functional_call(members[0], state, inputs))(parameters, buffers)
    torch.testing.assert_close(stacked, torch.stack([member(*inputs) for member in members]), rtol=1e-4, atol=1e-5)


def test_parameters_that_are_cast_without_the_buffers():
    """Mixed precision of FSDP2 does this for each call; a dense model then computes in the narrow type."""
    gm = fxhash.transform(ConvNet(), 0.5)
    x = torch.randn(4, 3, 6, 6)
    narrow = {name: parameter.bfloat16() for name, parameter in gm.named_parameters()}
    actual = functional_call(gm, narrow, (x.bfloat16(),))
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), gm(x), rtol=5e-2, atol=5e-2)


RECEIVER = """
import pickle, sys, torch
torch.set_num_threads(1)
for name, expected, inputs in torch.load(sys.argv[1] + "/expected.pt"):
    with open(f"{sys.argv[1]}/{name}.pickle", "rb") as file:
        unpickled = pickle.load(file)
    loaded = torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=False)
    for model in (unpickled, loaded):
        assert torch.equal(model(*inputs), expected), name
        model(*inputs).sum().backward()
"""


@may_be_opaque
def test_another_process_reads_a_pickled_model(tmp_path):
    expected = []
    for name in CASES:
        gm, inputs = build(name)
        gm.eval()
        expected.append((name, gm(*inputs).detach(), inputs))
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(gm))
        torch.save(gm, tmp_path / f"{name}.pt")
    torch.save(expected, tmp_path / "expected.pt")
    subprocess.run(
        [sys.executable, "-c", RECEIVER, str(tmp_path)], env={**os.environ, "PYTHONPATH": os.getcwd()}, check=True
    )


@every_case
def test_training_resumes_where_it_stopped(name, tmp_path):
    """State dicts of model and optimizer, read by `torch.load(weights_only=True)`, are all that it takes."""
    (gm, inputs), (resumed, _) = build(name, seed=0), build(name, seed=1)
    optimizer = torch.optim.AdamW(gm.parameters(), lr=1e-2)
    train(gm, optimizer, inputs)
    torch.save({"model": gm.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    read = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.load_state_dict(read["model"])
    resumed_optimizer = torch.optim.AdamW(resumed.parameters())
    resumed_optimizer.load_state_dict(read["optimizer"])
    assert train(gm, optimizer, inputs) == train(resumed, resumed_optimizer, inputs)


# Name -> how to create one, and how many tensors it keeps for each parameter.
OPTIMIZERS = {
    "SGD": (lambda parameters, **how: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, **how), 1),
    "AdamW": (lambda parameters, **how: torch.optim.AdamW(parameters, lr=1e-2, **how), 2),
}


@every_case
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_hold_the_compressed_size(name, kind):
    """Also where they work on many parameters at a time, with the same result."""
    create, tensors_a_parameter = OPTIMIZERS[kind]
    losses = []
    for how in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        gm, inputs = build(name)
        optimizer = create(gm.parameters(), **how)
        losses.append(train(gm, optimizer, inputs, steps=4))
        held = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.dim()]
        if name != "BranchesOnInput":  # It reaches one of two layers.
            assert sum(tensor.numel() for tensor in held) == tensors_a_parameter * generator_of(gm).plan.trainable_after
    assert losses[0][-1] < losses[0][0]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-4, atol=0)


@every_case
def test_lbfgs(name):
    gm, inputs = build(name)
    optimizer = torch.optim.LBFGS(gm.parameters(), lr=0.1, max_iter=4)
    losses = train(gm, optimizer, inputs)
    assert losses[-1] < losses[0]
    assert next(iter(optimizer.state.values()))["d"].numel() == generator_of(gm).plan.trainable_after


@every_case
def test_all_gradients_and_parameters_as_one_vector(name):
    gm, inputs = build(name)
    loss_of(gm, *inputs).backward()
    reached = [parameter for parameter in gm.parameters() if parameter.grad is not None]
    norm = parameters_to_vector(parameter.grad for parameter in reached).norm()
    for foreach, share in ((False, 0.5), (True, 0.1)):
        clip_grad_norm_(gm.parameters(), share * norm.item(), foreach=foreach)
        torch.testing.assert_close(parameters_to_vector(each.grad for each in reached).norm(), share * norm)

    vector = parameters_to_vector(gm.parameters())
    assert vector.numel() == generator_of(gm).plan.trainable_after
    other, _ = build(name, seed=1)
    vector_to_parameters(vector.detach(), other.parameters())
    assert_same_outputs(gm, other, *inputs, rtol=0)


@every_case
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-4), (torch.bfloat16, 1e-1), (torch.float16, 2e-2)])
def test_trains_in_another_type(name, dtype, rtol):
    gm, inputs = build(name)
    converted = copy.deepcopy(gm).to(dtype)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (gm, converted)]
    losses = train(gm, optimizers[0], inputs)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    torch.testing.assert_close(train(converted, optimizers[1], inputs), losses, rtol=rtol, atol=0)
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == dtype for parameter in converted.parameters())


@pytest.mark.parametrize("name", ["ConvNet", "ResidualConvNet"])
def test_channels_last_while_training(name):
    gm, (x,) = build(name)
    channels_last = copy.deepcopy(gm).to(memory_format=torch.channels_last)
    expected, actual = gm(x), channels_last(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    expected.square().mean().backward()
    actual.square().mean().backward()
    assert_same_gradients(gm, channels_last)


def test_derivatives_are_exact():
    """Against finite differences, the second ones too; some rows of one weight use a row of `right` more."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh()).double()
    gm = fxhash.transform(model, 0.85, aspect=1, seed=0)
    assert gm.smh_generator.more_left
    names = [name for name, _ in gm.named_parameters()]

    def forward(x, *parameters):
        return functional_call(gm, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True), *gm.parameters())
    assert torch.autograd.gradcheck(forward, inputs)
    assert torch.autograd.gradgradcheck(forward, inputs)
