"""Folders: a file, and a `config.json` that can't say anything else."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import fxhash
from tests.helpers import assert_same_outputs

SIZES = {"in_features": 24, "out_features": 24}


@pytest.fixture
def stored(tmp_path):
    gm = fxhash.transform(nn.Linear(**SIZES), 0.5, seed=0)
    folder = tmp_path / "a" / "folder"
    fxhash.save_pretrained(gm, folder, factory="torch.nn:Linear", arguments=SIZES)
    return gm, folder


def test_a_folder_makes_the_model_again(stored):
    gm, folder = stored
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["factory"] == "torch.nn:Linear"
    assert config["arguments"] == SIZES
    x = torch.randn(2, 24)
    for loaded in (
        fxhash.from_pretrained(folder, trust=["torch.nn"]),
        fxhash.from_pretrained(folder, nn.Linear(**SIZES)),
        fxhash.load(folder / "model.safetensors", nn.Linear(**SIZES)),
    ):
        assert_same_outputs(gm, loaded, x, rtol=0)
    with pytest.raises(fxhash.CheckpointError, match="Linear, which is not trusted"):
        fxhash.from_pretrained(folder)


def test_a_folder_is_replaced(stored):
    gm, folder = stored
    fxhash.save_pretrained(gm, folder, dtype=torch.int8)
    with pytest.raises(fxhash.CheckpointError, match="doesn't say what builds its model"):
        fxhash.from_pretrained(folder, trust=["torch.nn"])
    fxhash.from_pretrained(folder, nn.Linear(**SIZES))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: give a folder that fxhash.save_pretrained wrote"),
        ("{", "can't be read"),
        ("[]", "can't be read: it was not written by"),
        ("{}", "can't be read: it was not written by"),
        ('{"format": 1, "factory": "os:system", "arguments": {}}', "names another factory than model.safetensors"),
        ('{"format": 1}', "names another factory than model.safetensors"),
        ("[" * 50_000, "can't be read"),
        ('{"format": 1, "a": ' + "1" * 10**5 + "}", "can't be read: it holds an integer of 100,000 digits"),
        (" " * (2**20 + 1), "can't be read: it has more than 1,048,576 bytes"),
        ("\x1b[2J\u00e9", "can't be read"),
    ],
)
def test_a_config_of_another_model_or_of_none(stored, content, message):
    _, folder = stored
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(fxhash.CheckpointError, match=message) as caught:
        fxhash.from_pretrained(folder, nn.Linear(**SIZES), trust=["torch.nn", "os"])
    assert str(caught.value).isprintable()


def test_nothing_is_made_for_what_can_not_be_saved(tmp_path):
    with pytest.raises(fxhash.TransformError, match="has no generator"):
        fxhash.save_pretrained(nn.Linear(3, 3), tmp_path / "folder")
    gm = fxhash.transform(nn.Linear(24, 24), 0.5)
    with pytest.raises(fxhash.PlanError, match="is no name of a function"):
        fxhash.save_pretrained(gm, tmp_path / "folder", factory="Linear")
    (tmp_path / "file").write_text("")
    with pytest.raises(fxhash.CheckpointError, match="can't be written"):
        fxhash.save_pretrained(gm, tmp_path / "file")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file"]
