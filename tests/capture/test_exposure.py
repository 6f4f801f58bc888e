"""What is exposed of a model: under which name, in which modules."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from fxhash.capture.exposure import Exposure
from tests.models import MODELS, SharedStorage, TiedEmbedding

every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_everything_is_found_under_one_name(name):
    model = MODELS[name][0]()
    every_name = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    exposure = Exposure.of(model, every_name)
    found = exposure.exposed_in("")
    assert list(found) == list(exposure.parameters)
    assert sorted(each for names in found.values() for each in names) == sorted(every_name)
    for module in model.modules():
        assert exposure.is_held_by(module) is bool(list(module.parameters()))
    for fqn, names in found.items():
        assert names[0] == fqn
        assert {exposure.name_of(model.get_parameter(each)) for each in names} == {fqn}


@every_model
def test_nothing_is_exposed_that_was_not_named(name):
    model = MODELS[name][0]()
    exposure = Exposure.of(model, [])
    assert exposure.exposed_in("") == {}
    assert not any(exposure.is_held_by(module) for module in model.modules())
    assert all(exposure.name_of(parameter) is not None for parameter in model.parameters())


def test_a_tied_parameter_is_exposed_by_any_of_its_names():
    model = TiedEmbedding()
    exposure = Exposure.of(model, ["head.weight"])
    assert exposure.exposed_in("") == {"embedding.weight": ("embedding.weight", "head.weight")}
    assert exposure.exposed_in("head") == {"embedding.weight": ("weight",)}
    assert [exposure.is_held_by(module) for module in model.children()] == [True, False, True]


def test_two_objects_of_one_storage_are_one_parameter():
    model = SharedStorage()
    exposure = Exposure.of(model, ["second.weight"])
    assert exposure.exposed_in("") == {"first.weight": ("first.weight", "second.weight")}
    assert exposure.name_of(model.second.weight) == "first.weight"
    assert exposure.parameters["first.weight"] is model.first.weight


def test_other_tensors_have_no_name_and_fields_are_fixed():
    exposure = Exposure.of(nn.Linear(3, 3), ["weight"])
    assert exposure.name_of(torch.zeros(3)) is None
    with pytest.raises(FrozenInstanceError):
        exposure.exposed = frozenset()
