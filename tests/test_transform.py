"""What `transform` promises, over random models and over models named for their trait."""

from __future__ import annotations

import copy
import io
import operator
import pickle
import re
import warnings

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn import functional as F

import fxhash
from tests.helpers import (
    CountingOperators,
    assert_same_outputs,
    generator_of,
    may_be_opaque,
    run,
    smallest_transform,
    trainable,
    uncalibrated,
)
from tests.models import MODELS, AlwaysDropout, FrozenBackbone, FunctionalDropout, ResidualConvNet, UnusedParameter
from tests.strategies import fractions, random_models

pytestmark = may_be_opaque

every_model = pytest.mark.parametrize("name", MODELS)


def build(name):
    model, inputs = MODELS[name]
    return model(), inputs()


def snapshot(model):
    """Everything about a model that a transformation might disturb."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    identities = [(name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)]
    structure = [(name, type(module), module.training, sorted(vars(module))) for name, module in model.named_modules()]
    return state, identities, structure


def assert_untouched(model, before):
    state, identities, structure = before
    after_state, after_identities, after_structure = snapshot(model)
    assert state.keys() == after_state.keys()
    assert all(torch.equal(state[key], after_state[key]) for key in state)
    assert identities == after_identities
    assert structure == after_structure


@given(random_models(), fractions)
def test_shapes_types_and_budget(case, compress):
    model, x = case
    before = snapshot(model)
    gm = smallest_transform(model, compress, seed=0)
    assert_untouched(model, before)
    assert isinstance(gm, torch.fx.GraphModule)
    assert gm.training == model.training
    for expected, actual in zip(run(model, x), run(gm, x), strict=True):
        assert expected.shape == actual.shape
        assert expected.dtype == actual.dtype
    plan = gm.smh_generator.plan
    assert trainable(gm) == plan.trainable_after
    assert trainable(gm) / trainable(model) <= max(compress, plan.compress)


@given(random_models())
def test_gradients_reach_every_factor(case):
    model, x = case
    gm = smallest_transform(model.train(), 0.5, seed=0)
    gm(x).square().sum().backward()
    left, right, scales = gm.smh_generator.left, gm.smh_generator.right, gm.smh_generator.log_scales
    for factor in (*left, *gm.smh_generator.more_left, right, scales):
        assert factor.grad is not None
        assert torch.isfinite(factor.grad).all()
    for block in left:
        assert (block.grad.abs().sum(1) > 0).all(), "a row of left has no gradient"
    assert (right.grad.abs().sum(0) > 0).all(), "a column of right has no gradient"
    assert (right.grad.abs().sum(1) > 0).all(), "a row of right has no gradient"
    for parameter, gradient in zip(gm.smh_generator.plan.hashed, scales.grad, strict=True):
        # Weight norm divides the scale of its direction, `original1`, out again.
        assert gradient != 0 or parameter.fqn.endswith("original1")


@given(random_models())
def test_deepcopy_pickle_and_state_dict_round_trips(case):
    model, x = case
    gm = smallest_transform(model, 0.5, seed=0)
    for again in (copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        assert list(again.state_dict()) == list(gm.state_dict())
        assert_same_outputs(gm, again, x, rtol=0)
    other = smallest_transform(model, 0.5, seed=1)
    file = io.BytesIO()
    torch.save(gm.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_outputs(gm, other, x, rtol=0)


class ComputesWithBuffers(nn.Module):
    """With nothing but buffers, and in place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        for name, value in {"mean": torch.zeros(16), "var": torch.ones(16), "calls": torch.zeros(())}.items():
            self.register_buffer(name, value)

    def forward(self, x):
        self.calls.mul_(0.5).add_(1)
        return self.linear((x - self.mean) / (self.var + 1e-5).sqrt()) * self.calls


def test_what_is_computed_with_buffers_alone_is_so_after_unpickling():
    gm = fxhash.transform(ComputesWithBuffers(), 0.9, seed=0)
    x = torch.randn(4, 16)
    gm(x)
    for form in (gm, fxhash.lower_for_deploy(gm), fxhash.lower_for_training(gm)):
        again = pickle.loads(pickle.dumps(form))
        assert again.state_dict().keys() == form.state_dict().keys()
        for model in (form, again):
            model.var.fill_(100.0)
        for _ in range(2):
            assert_same_outputs(form, again, x)
        torch.testing.assert_close(again.calls, form.calls)


@given(random_models())
def test_every_weight_equals_the_definition(case):
    """`shift + scale * W.flatten()[offset : offset + numel]`, with the one matrix `W` written out."""
    model, _ = case
    gm = smallest_transform(model, 0.5, seed=0)
    generator, layout = gm.smh_generator, gm.smh_generator.plan.layout
    with torch.no_grad():
        generator.log_scales.normal_()
    left = torch.zeros(layout.rows, layout.rank, dtype=torch.float64)
    for parameter, block in zip(generator.plan.hashed, generator.left, strict=True):
        left[parameter.first_row : parameter.first_row + block.shape[0], : block.shape[1]] = block.detach()
        if parameter.more_rows:
            (more,) = generator.more_left
            left[parameter.first_row : parameter.first_row + parameter.more_rows, block.shape[1]] = more.detach()[:, 0]
    product = left @ generator.right.detach().double()
    for index, parameter in enumerate(generator.plan.hashed):
        offset = parameter.first_row * layout.cols
        run_of_it = product.flatten()[offset : offset + parameter.numel]
        scale = generator.log_scales[index].double().exp()
        expected = generator.shifts[index].double() + scale * run_of_it
        weight = generator(parameter.fqn)
        assert weight.dtype == getattr(torch, parameter.dtype)
        assert weight.shape == parameter.shape
        tolerance = 1e-2 if parameter.dtype == "bfloat16" else 1e-4
        torch.testing.assert_close(
            weight.double().flatten(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
        )


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_transformed_model_behaves_as_its_dense_values_in_the_original(name, training):
    """Put the generated values into the original model: outputs must be equal in both modes, also after switching."""
    model, inputs = build(name)
    model.train(training)
    before = snapshot(model)
    gm = smallest_transform(model, 0.5, seed=0)
    assert_untouched(model, before)
    generator = generator_of(gm)
    with torch.no_grad():
        for parameter in generator.plan.hashed:
            model.get_parameter(parameter.fqn).copy_(generator(parameter.fqn))
    for mode in (training, not training, training):
        assert_same_outputs(model.train(mode), gm.train(mode), *inputs)


@every_model
def test_budget_and_gradients(name):
    model, inputs = build(name)
    gm = smallest_transform(model.train(), 0.5, seed=0)
    generator = generator_of(gm)
    plan = generator.plan
    assert trainable(gm) == plan.trainable_after
    assert trainable(gm) / trainable(model) <= max(0.5, plan.compress)
    with torch.no_grad():
        # Off zero, to which the rows of a constant are initialized: at first nothing but those rows learns then.
        for block in generator.left:
            block.add_(0.1)
    outputs = [leaf for leaf in torch.utils._pytree.tree_leaves(gm(*inputs)) if leaf.requires_grad]
    sum(output.double().square().sum() for output in outputs).backward()
    for factor in (generator.right, generator.log_scales):
        assert factor.grad is not None
        assert factor.grad.abs().sum() > 0
    # Not every block: one may belong to a branch that was not taken.
    assert any(block.grad is not None and block.grad.abs().sum() > 0 for block in generator.left)


@every_model
def test_every_hashed_parameter_is_a_call_of_the_one_generator(name):
    model, _ = build(name)
    gm = smallest_transform(model, 0.5)
    plan = generator_of(gm).plan
    calls = [node for node in gm.graph.nodes if node.op == "call_module" and node.target == "smh_generator"]
    assert sorted(node.args[0] for node in calls) == sorted(parameter.fqn for parameter in plan.hashed)
    read = {node.target for node in gm.graph.nodes if node.op == "get_attr"}
    assert not read & {parameter.fqn for parameter in plan.hashed}
    dense = {id(parameter) for parameter in gm.parameters()} - {id(p) for p in gm.smh_generator.parameters()}
    assert len(dense) == len(plan.dense)


@pytest.mark.parametrize(
    "name", ["ResidualConvNet", "ConvCalledTwice", "TiedEmbedding", "LSTM", "Attention", "Buffers"]
)
def test_takes_what_symbolic_trace_gives(name):
    model, inputs = build(name)
    traced = torch.fx.symbolic_trace(model)
    before = snapshot(traced)
    from_traced, from_module = fxhash.transform(traced, 0.6, seed=0), fxhash.transform(model, 0.6, seed=0)
    assert_untouched(traced, before)
    assert_same_outputs(from_module, from_traced, *inputs)
    assert_same_outputs(from_module.eval(), from_traced.eval(), *inputs)


@pytest.mark.parametrize("training", [True, False])
def test_frozen_training_flags_of_symbolic_trace_follow_the_mode_again(training):
    model = FunctionalDropout().train(training)
    gm = fxhash.transform(torch.fx.symbolic_trace(model), 0.9, seed=0)
    reference = fxhash.transform(model, 0.9, seed=0)
    for mode in (True, False, True):
        assert_same_outputs(reference.train(mode), gm.train(mode), torch.randn(4, 16))


def test_dropout_that_is_always_on_stays_on():
    gm = fxhash.transform(AlwaysDropout().eval(), 0.9, seed=0)
    x = torch.randn(4, 16)
    assert not torch.equal(*run(gm, x, seed=0), *run(gm, x, seed=1))


def test_tied_parameters_share_one_run_and_are_generated_once():
    model, _ = build("TiedEmbedding")
    gm = fxhash.transform(model, 0.8)
    entry = gm.smh_generator.plan.hashed[0]
    assert (entry.fqn, entry.aliases) == ("embedding.weight", ("head.weight",))
    calls = [node for node in gm.graph.nodes if node.args and node.args[0] == "embedding.weight"]
    assert len(calls) == 1
    assert {user.target for user in calls[0].users} == {F.embedding, F.linear}


def test_one_product_a_weight_and_nothing_of_the_size_of_all_weights():
    gm = fxhash.transform(ResidualConvNet(), 0.3, separable=False)
    loss = gm(torch.randn(2, 3, 6, 6)).sum()
    with CountingOperators() as forward:
        gm(torch.randn(2, 3, 6, 6))
    with CountingOperators() as backward:
        loss.backward()
    assert forward["aten.addmm"] == len(gm.smh_generator.plan.hashed) + 1, "one a weight, one of the linear layer"
    assert forward["aten.cat"] <= 1, "no more than the one block whose rows differ in rank"
    assert backward["aten.cat"] == 0


def test_transforming_twice_is_an_error():
    gm = fxhash.transform(nn.Linear(30, 30), 0.5)
    for model in (gm, nn.Sequential(gm, nn.Linear(30, 30)), fxhash.lower_for_deploy(gm)):
        with pytest.raises(fxhash.TransformError, match="transformed already"):
            fxhash.transform(model, 0.5)
    assert isinstance(fxhash.transform(fxhash.materialize(gm), 0.5), torch.fx.GraphModule)


def test_not_a_module():
    with pytest.raises(
        fxhash.TransformError, match=re.escape("expected a torch.nn.Module or GraphModule, got function")
    ):
        fxhash.transform(lambda x: x, 0.5)


def test_lazy_modules_ask_for_a_batch():
    model = nn.Sequential(nn.LazyLinear(30), nn.ReLU())
    with pytest.raises(fxhash.TransformError, match=r"'0\.weight' has no shape yet: run one batch"):
        fxhash.transform(model, 0.5)
    model(torch.zeros(2, 30))
    assert fxhash.transform(model, 0.5)(torch.zeros(2, 30)).shape == (2, 30)


def test_a_model_that_cannot_be_copied():
    model = nn.Linear(30, 30)
    model.stream = io.TextIOWrapper(io.BytesIO())
    with pytest.raises(fxhash.TransformError, match=r"can't be copied by copy\.deepcopy.*TextIOWrapper"):
        fxhash.transform(model, 0.5)


def test_values_that_are_not_finite():
    model = nn.Linear(30, 30)
    model.weight.data[3, 4] = float("nan")
    with pytest.raises(fxhash.TransformError, match="'weight' holds NaN or infinity"):
        fxhash.transform(model, 0.5)


def test_several_devices():
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30, device="meta"))
    with pytest.raises(fxhash.TransformError, match=r"several devices \(cpu, meta\)"):
        fxhash.transform(model, 0.5)


def test_meta_in_meta_out():
    with torch.device("meta"):
        model = ResidualConvNet()
    gm = fxhash.transform(model, 0.3)
    assert gm(torch.zeros(2, 3, 6, 6, device="meta")).shape == (2, 10)
    assert all(tensor.is_meta for tensor in gm.state_dict().values())


def test_frozen_parameters_stay_dense_and_frozen():
    model = FrozenBackbone()
    gm = fxhash.transform(model, 0.5)
    frozen = gm.get_parameter("backbone.weight")
    assert not frozen.requires_grad
    assert torch.equal(frozen, model.backbone.weight)
    assert gm.smh_generator.plan.frozen == 16 * 32 + 32


def test_unused_parameters_are_reported_and_dropped():
    gm = fxhash.transform(UnusedParameter(), 0.5)
    plan = gm.smh_generator.plan
    assert plan.unused == ("forgotten.weight", "forgotten.bias")
    assert plan.trainable_before == 16 * 16 + 16
    assert "never used, dropped: forgotten.weight, forgotten.bias" in str(plan)


def test_script_modules_stay_dense():
    class HoldsScript(nn.Module):
        def __init__(self):
            super().__init__()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.scripted = torch.jit.trace(nn.Linear(16, 16), torch.zeros(1, 16))
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            return self.linear(self.scripted(x))

    model = HoldsScript()
    gm = fxhash.transform(model, 0.9)
    reasons = {parameter.fqn: parameter.dense_because for parameter in gm.smh_generator.plan.parameters}
    assert reasons["scripted.weight"] == "inside a script module"
    assert reasons["linear.weight"] == ""


def test_sparse_gradients_become_dense():
    model, inputs = build("SparseEmbedding")
    gm = fxhash.transform(model, 0.5)
    gm(*inputs).sum().backward()
    assert not gm.smh_generator.right.grad.is_sparse


def test_user_code_that_nobody_reads_is_kept():
    model, inputs = build("InPlaceBuffer")
    gm = fxhash.transform(model, 0.9)
    gm(*inputs)
    gm(*inputs)
    assert gm.calls == 2
    assert model.calls == 0


def test_batch_norm_can_be_hashed_on_request():
    model, inputs = build("ResidualConvNet")
    gm = fxhash.transform(model, 0.9, include=".*", seed=0)
    assert not gm.smh_generator.plan.dense
    torch.testing.assert_close(gm.smh_generator("norm.weight"), torch.ones(12))
    gm.train()(*inputs)
    assert gm.norm.opaque_part.wrapped_module.num_batches_tracked == 1


def test_arguments_keep_their_names_defaults_and_structure():
    model, (x,) = build("TwoInputs")
    gm = fxhash.transform(model, 0.9)
    assert gm(x=x, scale=0.0)["z"].abs().sum() == 0
    assert set(gm(x)) == {"z", "x"}


def test_learns():
    """The end of it all: a transformed model trains."""
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    y = (x @ torch.randn(16, 4)).argmax(1)
    gm = fxhash.transform(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)), 0.4, seed=0)
    optimizer = torch.optim.Adam(gm.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(gm(x), y).backward()
        optimizer.step()
    assert (gm(x).argmax(1) == y).float().mean() > 0.9


class Operators(nn.Module):
    """Written with operators, on values and on a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(30, 30))

    def forward(self, x):
        return (x @ -self.weight + x[0]) * 2


def test_operators_survive():
    """They are recorded as functions of the operator module, so that the graph stays readable and picklable."""
    gm = fxhash.transform(Operators(), 0.5, seed=0)
    called = [node.target for node in gm.graph.nodes if node.op == "call_function"]
    assert called == [operator.neg, operator.matmul, operator.getitem, operator.add, operator.mul]
    assert "neg = -smh_generator" in gm.code
    assert_same_outputs(gm, pickle.loads(pickle.dumps(gm)), torch.randn(4, 30))


@uncalibrated
@given(random_models(), fractions)
def test_pretrained_initialization_is_nearer_than_random_initialization(case, compress):
    model, x = case
    random = smallest_transform(model, compress, seed=0)
    plan = random.smh_generator.plan
    near = fxhash.transform(model, plan.compress, init="pretrained", seed=0)
    assert near.smh_generator.plan == plan
    assert near(x).shape == random(x).shape
    originals = dict(model.named_parameters())
    errors = []
    for gm in (near, random):
        scales = near.smh_generator.log_scales.exp()
        with torch.no_grad():
            differences = [
                (gm.smh_generator(parameter.fqn) - originals[parameter.fqn]).double() / scale
                for parameter, scale in zip(plan.hashed, scales, strict=True)
            ]
        errors.append(sum(difference.square().sum().item() for difference in differences))
    assert errors[0] <= errors[1] * (1 + 1e-6) + 1e-9


@uncalibrated
@pytest.mark.parametrize("calibrated", [False, True])
def test_pretrained_initialization_with_room_enough_is_the_model(calibrated):
    """Weights in a space of as few dimensions as there are ranks are kept, a shifted and a constant one too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 8)).double()
    with torch.no_grad():
        for layer, rank in zip(model, (1, 2, 1), strict=True):
            layer.weight.copy_(torch.randn(layer.out_features, rank) @ torch.randn(rank, layer.in_features))
        model[2].weight.fill_(0.25)
        model[1].weight.add_(100)
    x = torch.randn(500, 64, dtype=torch.float64)
    gm = fxhash.transform(model, 0.9, init="pretrained", seed=0, calibration=[x] if calibrated else None)
    assert_same_outputs(model, gm, x)


@uncalibrated
def test_impossible_initializations():
    model = nn.Linear(64, 64)
    with pytest.raises(fxhash.PlanError, match="init='zeros' is unknown: give one of 'random', 'pretrained'"):
        fxhash.transform(model, 0.5, init="zeros")
    with pytest.raises(fxhash.TransformError, match="init='pretrained' needs values"):
        fxhash.transform(model.to("meta"), 0.5, init="pretrained", device="cpu")
