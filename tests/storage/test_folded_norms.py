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


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One folder for all examples of a property, which a `tmp_path` can't be."""
    return tmp_path_factory.mktemp("folded")


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
    model = with_statistics(ResidualConvNet()).half()
    with torch.no_grad():
        model.norm.running_var.fill_(0)
        model.norm.weight.fill_(1e4)
    gm, path = fxhash.transform(model, 0.3, seed=0), tmp_path / "model.safetensors"
    with pytest.raises(fxhash.CheckpointError, match=r"can't be folded into 'norm\.weight', whose type can't hold"):
        fxhash.save(gm, path, fold_batch_norms=True)
    with pytest.raises(fxhash.PlanError, match="fold_batch_norms"):
        fxhash.save(gm, path, fold_batch_norms=1)
    assert not path.exists()
    model = with_statistics(ResidualConvNet())
    fxhash.save(fxhash.transform(model, 0.3, seed=0), path, fold_batch_norms=True)
    plan, tensors = opened(path)
    forge(path, plan, {**tensors, "norm.running_mean": torch.zeros(12)})
    with pytest.raises(fxhash.CheckpointError, match=r"lacks the tensor 'norm\.num_batches_tracked'"):
        fxhash.load(path, model)
    forge(path, plan, tensors)
    exported = torch.export.export(model, (torch.randn(2, 3, 8, 8),))
    with pytest.raises(fxhash.CheckpointError, match=r"lacks the statistics of 'norm', .* has none of that name"):
        fxhash.load(path, exported)
