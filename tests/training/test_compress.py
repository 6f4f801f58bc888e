"""The callback for a LightningModule of a user's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import fxhash
from fxhash.errors import TrainingError
from fxhash.training import Compress
from tests.helpers import assert_same_outputs

pytestmark = pytest.mark.filterwarnings("ignore")


def network():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.loss = nn.MSELoss()
        self.model = network()

    def training_step(self, batch, index):
        x, y = batch
        return self.loss(self.model(x), y)

    test_step = training_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class OwnLayers(Regression):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)


class Nothing(Regression):
    def __init__(self):
        super().__init__()
        del self.model


@pytest.fixture
def batches():
    torch.manual_seed(0)
    x = torch.randn(32, 16)
    return DataLoader(TensorDataset(x, F.relu(x[:, :4])), batch_size=8)


def trainer(folder, *callbacks, epochs=2):
    return Trainer(
        **{"max_epochs": epochs, "accelerator": "cpu", "default_root_dir": folder, "logger": False},
        **{"enable_progress_bar": False, "enable_model_summary": False},
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
    )


def test_transforms_trains_saves_and_lowers(tmp_path, batches):
    module, callback = Regression(), Compress(0.5, seed=0, dtype=torch.bfloat16)
    run = trainer(tmp_path, callback)
    run.fit(module, batches)
    gm = module.model
    assert gm is callback.transformed
    assert fxhash.summary(gm).trainable_after == sum(each.numel() for each in module.parameters())
    first = fxhash.transform(network(), 0.5, seed=0)
    assert not torch.equal(first.smh_generator.right, gm.smh_generator.right)
    loaded = fxhash.load(tmp_path / "model.safetensors", network())
    assert_same_outputs(gm.eval(), loaded.eval(), torch.randn(3, 16), rtol=0.05)
    assert_same_outputs(gm, callback.lowered, torch.randn(3, 16))
    run.test(module, batches, verbose=False)
    assert module.model is gm


def test_goes_on_from_a_checkpoint(tmp_path, batches):
    saver = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, Compress(0.5, path=tmp_path / "one.safetensors"), saver, epochs=1).fit(Regression(), batches)
    module = Regression()
    callback = Compress(0.5, path=tmp_path / "two.safetensors")
    trainer(tmp_path, callback, epochs=2).fit(module, batches, ckpt_path=tmp_path / "last.ckpt")
    before = fxhash.load(tmp_path / "one.safetensors", network()).smh_generator.right
    after = fxhash.load(tmp_path / "two.safetensors", network()).smh_generator.right
    assert 0 < (after - before).abs().max() < 0.2
    assert torch.equal(after, callback.transformed.smh_generator.right)


def test_one_of_several_submodules(tmp_path, batches):
    module = OwnLayers()
    with pytest.raises(TrainingError, match=r"OwnLayers has 2 submodules that are trained: model, head\. Put"):
        trainer(tmp_path, Compress(0.5)).fit(module, batches)
    trainer(tmp_path, Compress(0.5, module="model")).fit(module, batches)
    assert isinstance(module.model, torch.fx.GraphModule)
    assert isinstance(module.head, nn.Linear)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Nothing, {}, "Nothing has 0 submodules that are trained. Put the layers to compress into one, built in"),
        (Regression, {"module": "modle"}, r"has no submodule 'modle' at setup \(did you mean model.*\): build it in"),
        (Regression, {"path": "."}, "is a folder: give the path of a file"),
        (Regression, {"path": __file__ + "/model.safetensors"}, "can't be written"),
        (Regression, {"module": ""}, "has no submodule '' at setup"),
        (Regression, {"compress": 1e-6}, "Use compress=0.1864 or more"),
    ],
)
def test_what_can_not_be_compressed_is_said_before_training(tmp_path, batches, module, options, message):
    with pytest.raises(fxhash.FxhashError, match=message):
        trainer(tmp_path, Compress(**options)).fit(module(), batches)
    assert not any(tmp_path.iterdir())


def test_wrong_options():
    with pytest.raises(TrainingError, match=r"no option 'exlude' \(did you mean exclude or include\?\)"):
        Compress(0.5, exlude="x")
    with pytest.raises(fxhash.PlanError, match="compress=2 is not a fraction"):
        Compress(2)
