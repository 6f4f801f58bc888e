"""Files of models that are only evaluated: batch norms without statistics, and the same outputs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn import functional as F

import fxhash
import fxhash.zoo
from tests.helpers import assert_same_outputs, smallest_transform
from tests.models import MODELS, ResidualConvNet
from tests.storage.forgery import forge, opened
from tests.strategies import random_models


def with_statistics(model: nn.Module) -> nn.Module:
    """A model whose batch norms have been trained, as far as values can tell; in eval mode."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.weight.normal_(1)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.01, 4)
    return model.eval()


def folded(gm: nn.Module, model: nn.Module, path) -> nn.Module:
    """What is loaded of a file with folded batch norms; saved again, it is the same file."""
    fxhash.save(gm, path, fold_batch_norms=True)
    before = path.read_bytes()
    loaded = fxhash.load(path, model)
    fxhash.save(loaded, path)
    assert path.read_bytes() == before
    return loaded


@given(case=random_models())
def test_any_model_computes_the_same(folder, case):
    model, x = case
    gm = smallest_transform(with_statistics(model), 0.5, seed=0)
    loaded = folded(gm, model, folder / "any.safetensors")
    assert_same_outputs(loaded, gm, x)
    assert_same_outputs(fxhash.lower_for_deploy(loaded), gm, x, rtol=1e-3)
    names = opened(folder / "any.safetensors")[1]
    assert not any("running" in name for name in names)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_computes_the_same(name, tmp_path):
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    model, given = with_statistics(build()), inputs()
    gm = smallest_transform(model, 0.5, seed=0)
    assert_same_outputs(folded(gm, model, tmp_path / "model.safetensors"), gm, *given)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_smaller_file_that_deploys(bits, tmp_path):
    model = with_statistics(fxhash.zoo.create("resnet20"))
    gm, images = fxhash.transform(model, 0.1, seed=0), torch.randn(4, 3, 32, 32)
    options = {"dtype": f"int{bits}", "dense_dtype": "bfloat16"} if bits else {}
    loaded = []
    sizes = []
    for fold in (False, True):
        path = tmp_path / "model.safetensors"
        fxhash.save(gm, path, fold_batch_norms=fold, **options)
        sizes.append(path.stat().st_size)
        loaded.append(fxhash.load(path, model))
    channels = sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert channels == 688
    # 2 numbers for each channel; names and a count of batches for each norm.
    assert sizes[0] - sizes[1] >= 2 * channels * (2 if bits else 4)
    with torch.no_grad():
        whole, half = (fxhash.lower_for_deploy(each)(images) for each in loaded)
    assert (half - whole).norm() <= (0.03 if bits else 1e-4) * whole.norm()
    others = (fxhash.load(path, model, capture="modules"), pickle.loads(pickle.dumps(loaded[1])))
    for each in (copy.deepcopy(loaded[1]), *others):
        assert_same_outputs(each, loaded[1], images)


def test_it_can_not_be_trained(tmp_path):
    """In training mode a norm would divide by the deviation twice: it refuses, in each form that trains."""
    model = with_statistics(ResidualConvNet())
    gm, images = fxhash.transform(model, 0.3, seed=0), torch.randn(4, 3, 8, 8)
    loaded = folded(gm, model.train(), tmp_path / "model.safetensors")
    assert loaded.training
    expected = r"can only be evaluated: call \.eval\(\) first"
    for trained in (loaded, fxhash.lower_for_training(loaded), copy.deepcopy(loaded), fxhash.materialize(loaded)):
        with pytest.raises(fxhash.TransformError, match=expected):
            trained.train()(images)
    assert_same_outputs(loaded.eval(), gm, images)
    # One that was not folded goes on as before.
    gm.train()(images)


class ReadStatistics(nn.Module):
    """A norm whose statistics the model reads itself; one that does more; two with one weight; one by function."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(32, 32)
        self.plain, self.read, self.one, self.other, self.function = (nn.BatchNorm1d(32) for _ in range(5))
        self.other.weight = self.one.weight
        self.frozen = nn.BatchNorm1d(32, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.body(x)) + self.read(x) + self.read.running_var
        x = self.one(x) + self.other(x) + self.frozen(x)
        norm = self.function
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def test_norms_that_can_not_be_folded_stay(tmp_path):
    torch.manual_seed(0)
    model = ReadStatistics()
    for norm in (model.plain, model.read, model.one, model.function):
        with_statistics(norm)
    model.eval()
    gm, x = fxhash.transform(model, 0.9, seed=0), torch.randn(4, 32)
    assert_same_outputs(folded(gm, model, tmp_path / "model.safetensors"), gm, x)
    names = opened(tmp_path / "model.safetensors")[1]
    held = {name.partition(".")[0] for name in names if name.endswith("running_var")}
    assert held == {"read", "one", "other", "function", "frozen"}


def test_transformed_submodules(tmp_path):
    """Norms inside of them are folded; those of the code around them stay."""
    torch.manual_seed(0)
    model = with_statistics(nn.Sequential(ResidualConvNet(), nn.BatchNorm1d(10)))
    mixed = copy.deepcopy(model)
    mixed[0] = fxhash.transform(model[0], 0.3, seed=0)
    images = torch.randn(4, 3, 8, 8)
    assert_same_outputs(folded(mixed, model, tmp_path / "model.safetensors"), mixed, images)
    names = opened(tmp_path / "model.safetensors")[1]
    assert [name for name in names if name.endswith("running_var")] == ["1.running_var"]


def test_what_can_not_be_folded_or_loaded(tmp_path):
    model, path = with_statistics(ResidualConvNet()), tmp_path / "model.safetensors"
    gm = fxhash.transform(model, 0.3, seed=0)
    with pytest.raises(fxhash.PlanError, match="fold_batch_norms"):
        fxhash.save(gm, path, fold_batch_norms=1)
    assert not path.exists()
    fxhash.save(gm, path, fold_batch_norms=True)
    plan, tensors = opened(path)
    for lacking in ("norm.folded_weight", "norm.folded_bias"):
        forge(path, plan, {name: tensor for name, tensor in tensors.items() if name != lacking})
        with pytest.raises(fxhash.CheckpointError, match=rf"lacks the tensor '{lacking.replace('folded_', '')}'"):
            fxhash.load(path, model)
    forge(path, plan, {**tensors, "norm.weight": torch.ones(12)})
    with pytest.raises(fxhash.CheckpointError, match=r"holds the tensor 'norm\.weight' and a folded one of its place"):
        fxhash.load(path, model)
    forge(path, plan, {**tensors, "stem.folded_bias": torch.ones(12)})
    with pytest.raises(fxhash.CheckpointError, match=r"holds a folded batch norm 'stem', but this model has no"):
        fxhash.load(path, model)


class WithNorm(nn.Module):
    """The norm is what its caller says."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(32, 32), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x))


OTHER_NORMS = {
    "group": lambda: nn.GroupNorm(4, 32),
    "no statistics": lambda: nn.BatchNorm1d(32, track_running_stats=False),
    "layer": lambda: nn.LayerNorm(32),
    "instance": lambda: nn.InstanceNorm1d(32, affine=True),
    "instance with statistics": lambda: nn.InstanceNorm1d(32, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("kind", OTHER_NORMS)
def test_another_norm_is_no_folded_one(kind, tmp_path):
    """The code of a model may have changed since it was saved: neither is taken for the other."""
    model, path = with_statistics(WithNorm(nn.BatchNorm1d(32))), tmp_path / "model.safetensors"
    other = WithNorm(OTHER_NORMS[kind]()).eval()
    fxhash.save(fxhash.transform(model, 0.5, seed=0), path, fold_batch_norms=True)
    with pytest.raises(fxhash.CheckpointError, match=r"holds a folded batch norm 'norm', but this model has no"):
        fxhash.load(path, other)
    if kind != "instance with statistics":
        fxhash.save(fxhash.transform(other, 0.5, seed=0), path, fold_batch_norms=True)
        with pytest.raises(fxhash.CheckpointError, match=r"lacks the tensor 'norm\.num_batches_tracked'"):
            fxhash.load(path, model)


def test_a_program_has_no_norm_to_refuse_training(tmp_path):
    model, x = with_statistics(WithNorm(nn.BatchNorm1d(32))), torch.randn(4, 32)
    fxhash.save(fxhash.transform(model, 0.5, seed=0), tmp_path / "model.safetensors", fold_batch_norms=True)
    with pytest.raises(fxhash.CheckpointError, match=r"folded batch norm 'norm', .* not with an exported program"):
        fxhash.load(tmp_path / "model.safetensors", torch.export.export(model, (x,)))


@pytest.mark.parametrize("change", ["capture", "hook", "nothing"])
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1.0])
def test_a_folded_norm_stays_so(change, eps, tmp_path):
    """However it is captured, or hooked, when it is saved again; bit for bit."""
    model, x = with_statistics(WithNorm(nn.BatchNorm1d(32, eps=eps))), torch.randn(4, 32)
    path = tmp_path / "model.safetensors"
    gm = fxhash.transform(model, 0.5, seed=0)
    fxhash.save(gm, path, fold_batch_norms=True)
    before = path.read_bytes()
    for _ in range(3):
        loaded = fxhash.load(path, model, capture="modules" if change == "capture" else "trace")
        assert_same_outputs(loaded, gm, x)
        if change == "hook":
            norm = next(module for module in loaded.modules() if isinstance(module, nn.BatchNorm1d))
            norm.register_forward_hook(lambda *_: None)
        fxhash.save(loaded, path)
        assert path.read_bytes() == before
        with pytest.raises(fxhash.TransformError, match="can only be evaluated"):
            loaded.train()(x)


def test_statistics_that_a_folded_norm_is_given_are_saved(tmp_path):
    model, x = with_statistics(WithNorm(nn.BatchNorm1d(32))), torch.randn(4, 32)
    gm, path = fxhash.transform(model, 0.5, seed=0), tmp_path / "model.safetensors"
    fxhash.save(gm, path, fold_batch_norms=True)
    loaded = fxhash.load(path, model)
    loaded.load_state_dict(gm.state_dict())
    fxhash.save(loaded, path)
    assert_same_outputs(fxhash.load(path, model), gm, x, rtol=0)
    fxhash.load(path, model).train()(x)


def with_a_norm_in_training_mode(model):
    model.norm.train()


def with_a_huge_variance(model):
    """Whose root makes a scale too small for float16."""
    model.norm.running_var[3] = 1e14


def with_a_tiny_variance(model):
    """Whose root makes a scale too large for float16."""
    model.norm.running_var.fill_(0)
    model.norm.weight.data[3] = 6e4


@pytest.mark.parametrize("change", [with_a_norm_in_training_mode, with_a_huge_variance, with_a_tiny_variance])
def test_norms_stay_where_folding_would_lose_something(change, tmp_path):
    """Batch statistics in eval mode, and values that float16 can't hold once they are folded."""
    model, x = with_statistics(WithNorm(nn.BatchNorm1d(32))), torch.randn(4, 32)
    change(model)
    gm, path = fxhash.transform(model, 0.5, seed=0), tmp_path / "model.safetensors"
    if change is with_a_huge_variance:
        with pytest.raises(fxhash.CheckpointError, match=r"running_var' has values that torch\.float16 can't hold"):
            fxhash.save(gm, path, fold_batch_norms=True, dense_dtype="float16")
        fxhash.save(gm, path, fold_batch_norms=True)
        assert "norm.folded_weight" in opened(path)[1]
    else:
        options = {} if change is with_a_norm_in_training_mode else {"dense_dtype": "float16"}
        fxhash.save(gm, path, fold_batch_norms=True, **options)
        assert "norm.running_var" in opened(path)[1]
    assert_same_outputs(fxhash.load(path, model), gm, x, rtol=1e-2)
