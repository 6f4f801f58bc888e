"""Files that say what builds their model: nothing is imported that the caller doesn't name."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxhash
from fxhash.storage.factory import Factory
from tests.helpers import assert_same_outputs
from tests.storage.forgery import forge, opened

CODE = """
import os
from os import getcwd, system
from torch import nn
from torch.nn import Linear

called = []

def build(width, depth=1, names=()):
    called.append(width)
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])

def fails(**arguments):
    raise RuntimeError("no such size")

def no_module(**arguments):
    return 3

def _private(**arguments):
    called.append("private")

value = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that is not imported yet."""
    name = f"factories_{tmp_path.name}"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def stored(tmp_path, module):
    """A model and the file of it, which names what builds it; the module is not imported any more."""
    gm = fxhash.transform(nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)), 0.5, seed=0)
    path = tmp_path / "model.safetensors"
    fxhash.save(gm, path, factory=f"{module}:build", arguments={"width": 24, "depth": 2})
    del sys.modules[module]
    return gm, path


@pytest.mark.parametrize("trusted", ["{}", "{}:build"])
def test_a_trusted_file_rebuilds_its_model(stored, module, trusted):
    gm, path = stored
    before = torch.get_rng_state()
    loaded = fxhash.load(path, trust=[trusted.format(module)])
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_outputs(gm, loaded, torch.randn(3, 24), rtol=0)


def test_a_package_that_is_trusted(tmp_path):
    path, sizes = tmp_path / "model.safetensors", {"in_features": 24, "out_features": 24}
    fxhash.save(fxhash.transform(nn.Linear(**sizes), 0.5), path, factory="torch.nn:Linear", arguments=sizes)
    assert fxhash.load(path, trust=["torch"])(torch.zeros(1, 24)).shape == (1, 24)


@pytest.mark.parametrize("trust", [[], ["other"], ["factories"], ["os"], ["{}.nn"], ["{}:fails"], ["{}:buil"]])
def test_nothing_is_imported_that_is_not_trusted(stored, module, trust):
    _, path = stored
    with pytest.raises(fxhash.CheckpointError, match=rf"asks to call {module}:build, which is not trusted: .*trust="):
        fxhash.load(path, trust=[name.format(module) for name in trust])
    assert module not in sys.modules


def test_a_model_that_is_given_is_used(stored, module):
    gm, path = stored
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
    assert_same_outputs(gm, fxhash.load(path, model, trust=[module]), torch.randn(3, 24), rtol=0)
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("system", "no function or class that a trusted module defines"),
        ("getcwd", "no function or class that a trusted module defines"),
        ("Linear", "no function or class that a trusted module defines, but one of torch.nn"),
        ("value", "no function or class"),
        ("nn", "no function or class"),
        ("missing", "can't be imported: AttributeError"),
        ("fails", "can't be called with the arguments of the file: RuntimeError: no such size"),
        ("no_module", "returned int, expected a torch.nn.Module"),
        ("_private", "names a factory that can't be used"),
        ("__import__", "names a factory that can't be used"),
        ("os.system", "names a factory that can't be used"),
    ],
)
def test_what_a_trusted_module_does_not_offer(stored, module, function, message):
    _, path = stored
    forge(path, *opened(path), {"name": f"{module}:{function}", "arguments": {"command": "touch hacked"}})
    with pytest.raises(fxhash.CheckpointError, match=message):
        fxhash.load(path, trust=[module])


def test_a_factory_of_another_model(stored, module):
    _, path = stored
    forge(path, *opened(path), {"name": f"{module}:build", "arguments": {"width": 25}})
    with pytest.raises(fxhash.CheckpointError, match=r"parameter '0\.weight' is 24x24 float32 in the file and 25x25"):
        fxhash.load(path, trust=[module])


HOSTILE = {
    "no object": [],
    "no name": {"arguments": {}},
    "no arguments": {"name": "a:b"},
    "more fields": {"name": "a:b", "arguments": {}, "more": 1},
    "a name that is no text": {"name": 3, "arguments": {}},
    "a path": {"name": "../a:b", "arguments": {}},
    "a long name": {"name": "a" * 2000 + ":b", "arguments": {}},
    "escapes": {"name": "\x1b[2J:b", "arguments": {}},
    "letters that look alike": {"name": "\u043es:b", "arguments": {}},
    "a line break": {"name": "a:b\n", "arguments": {}},
    "arguments in a list": {"name": "a:b", "arguments": []},
    "many arguments": {"name": "a:b", "arguments": {f"a{n}": 1 for n in range(20_000)}},
    "a long argument": {"name": "a:b", "arguments": {"a": "x" * 10**6}},
    "infinity": '{"name":"a:b","arguments":{"a":Infinity}}',
    "a number that is none": '{"name":"a:b","arguments":{"a":NaN}}',
    "a number of a million digits": '{"name":"a:b","arguments":{"a":' + "1" * 10**6 + "}}",
    "a large number": '{"name":"a:b","arguments":{"a":' + "9" * 19 + "}}",
    "lists in lists": '{"name":"a:b","arguments":{"a":' + "[" * 30_000 + "]" * 30_000 + "}}",
    "no JSON": "{",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_factories_are_refused_in_one_line(stored, module, case):
    _, path = stored
    forge(path, *opened(path), HOSTILE[case])
    with pytest.raises(fxhash.CheckpointError, match="names a factory that can't be used") as caught:
        fxhash.load(path, trust=[module, "a", "os"])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert module not in sys.modules


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(arguments=st.dictionaries(st.text(), plain, max_size=4))
def test_arguments_are_read_as_they_were_written(arguments):
    factory = Factory("package.module:function", arguments)
    assert Factory.from_json(factory.to_json()) == factory
    assert json.loads(factory.to_json())["arguments"] == arguments


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        ("build", None, "factory='build' is no name of a function: give 'package.module:function'"),
        ("{}:build", {"width": (1, 2)}, r"arguments\['width'\]=\(1, 2\) can't be stored"),
        ("{}:build", {"width": float("nan")}, r"arguments\['width'\]=nan can't be stored"),
        ("{}:build", {"wide": 3}, "can't be called with these arguments: .*missing a required argument: 'width'"),
        ("{}:missing", {}, "can't be used: .* can't be imported"),
        ("missing.module:build", {}, "can't be used: .* can't be imported"),
        ("{}:value", {}, "is no function or class"),
        ("__main__:build", {}, "is in a script, which can't be imported: move it to a module"),
        (None, {"width": 3}, "arguments are those of a factory: give factory="),
    ],
)
def test_a_factory_that_can_not_be_is_refused_before_anything_is_written(module, tmp_path, factory, arguments, message):
    gm = fxhash.transform(nn.Linear(24, 24), 0.5)
    path = tmp_path / "model.safetensors"
    with pytest.raises(fxhash.PlanError, match=message):
        fxhash.save(gm, path, factory=factory and factory.format(module), arguments=arguments)
    assert not path.exists()


def test_a_file_that_names_no_factory(tmp_path):
    fxhash.save(fxhash.transform(nn.Linear(24, 24), 0.5), tmp_path / "model.safetensors")
    with pytest.raises(fxhash.CheckpointError, match=r"doesn't say what builds its model: give the original model"):
        fxhash.load(tmp_path / "model.safetensors", trust=["torch"])
