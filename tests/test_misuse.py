"""Wrong arguments: each public function refuses them in words of ours, or takes them, and nothing is written."""

from __future__ import annotations

import dataclasses
import inspect
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxhash
from fxhash import zoo
from fxhash.errors import shown
from tests.helpers import assert_same_outputs

PACKAGE = str(Path(fxhash.__file__).parent)


class Lazy:
    """An object whose every use fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise RuntimeError("no str")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    __hash__ = None  # type: ignore[assignment]


class BareModule(nn.Module):
    """A module that was never initialized."""

    def __init__(self) -> None:
        pass


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "zero": lambda: 0,
    "minus one": lambda: -1,
    "a huge integer": lambda: 10**400,
    "a huge negative integer": lambda: -(10**400),
    "one half": lambda: 0.5,
    "three halves": lambda: 1.5,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "minus infinity": lambda: -float("inf"),
    "a complex number": lambda: 1j,
    "an empty string": lambda: "",
    "a string": lambda: "x",
    "a string with a null": lambda: "a\0b",
    "a lone surrogate": lambda: "\ud800",
    "an open parenthesis": lambda: "(",
    "digits": lambda: "9" * 5000,
    "bytes": lambda: b"x",
    "an empty list": lambda: [],
    "a list": lambda: [1, None],
    "an empty tuple": lambda: (),
    "an empty dict": lambda: {},
    "a dict": lambda: {1: 2, None: "x"},
    "a set": lambda: {1},
    "an object": lambda: object(),
    "an object that can't be shown": Lazy,
    "a class": lambda: nn.Linear,
    "a function of nothing": lambda: lambda: None,
    "a function that raises": lambda: _raises,
    "a tensor": lambda: torch.zeros(3),
    "a number in a tensor": lambda: torch.tensor(0.5),
    "an array": lambda: np.zeros(3),
    "a type": lambda: torch.int64,
    "a float type": lambda: torch.float8_e4m3fn,
    "a complex type": lambda: torch.complex64,
    "a device": lambda: torch.device("meta"),
    "a path": lambda: Path("missing") / "file",
    "a module": lambda: nn.ReLU(),
    "a module that is not initialized": BareModule,
    "an iterator": lambda: iter([1]),
    "an exception": lambda: ValueError("x"),
}


def _raises(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("raised by an argument")


@cache
def _transformed() -> torch.fx.GraphModule:
    return fxhash.transform(nn.Linear(32, 32), 0.5, seed=0)


def _saved(folder: Path) -> Path:
    fxhash.save(_transformed(), folder / "model.safetensors")
    return folder / "model.safetensors"


def _saved_folder(folder: Path) -> Path:
    fxhash.save_pretrained(_transformed(), folder / "pretrained")
    return folder / "pretrained"


# Each public function, with arguments that are right.
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[Path], dict[str, Any]]]] = {
    "transform": (
        fxhash.transform,
        lambda folder: {
            "traced_model": nn.Linear(32, 32),
            "compress": 0.5,
            "include": "weight",
            "exclude": "bias",
            "aspect": 1.0,
            "separable": True,
            "init": "random",
            "calibration": None,
            "seed": 0,
            "device": "cpu",
            "example_inputs": (torch.ones(1, 32),),
            "capture": "trace",
        },
    ),
    "lower_for_deploy": (
        fxhash.lower_for_deploy,
        lambda folder: {
            "gm": _transformed(),
            "memory_budget": 0,
            "dtype": torch.float32,
            "weights": "int8",
            "methods": {"weight": "generate"},
            "device": None,
            "example_inputs": (torch.ones(1, 32),),
        },
    ),
    "materialize": (fxhash.materialize, lambda folder: {"gm": _transformed()}),
    "trace": (fxhash.trace, lambda folder: {"model": nn.Linear(3, 3), "expose": ["weight"]}),
    "save": (
        fxhash.save,
        lambda folder: {
            "gm": _transformed(),
            "path": folder / "saved.safetensors",
            "dtype": torch.int8,
            "dense_dtype": "float16",
            "fold_batch_norms": True,
            "allow_nan": False,
            "factory": "torch.nn:Linear",
            "arguments": {"in_features": 32, "out_features": 32},
        },
    ),
    "load": (
        fxhash.load,
        lambda folder: {
            "path": _saved(folder),
            "model": nn.Linear(32, 32),
            "allow_nan": False,
            "example_inputs": (torch.ones(1, 32),),
            "capture": "trace",
            "trust": ["torch.nn"],
        },
    ),
    "save_pretrained": (
        fxhash.save_pretrained,
        lambda folder: {
            "gm": _transformed(),
            "folder": folder / "saved",
            "dtype": torch.int8,
            "dense_dtype": "float16",
            "fold_batch_norms": True,
            "allow_nan": False,
            "factory": "torch.nn:Linear",
            "arguments": {"in_features": 32, "out_features": 32},
        },
    ),
    "from_pretrained": (
        fxhash.from_pretrained,
        lambda folder: {
            "folder": _saved_folder(folder),
            "model": nn.Linear(32, 32),
            "allow_nan": False,
            "example_inputs": (torch.ones(1, 32),),
            "capture": "trace",
            "trust": ["torch.nn"],
        },
    ),
    "quantize_factors": (fxhash.quantize_factors, lambda folder: {"gm": _transformed(), "bits": 4, "group": 8}),
    "lower_for_training": (fxhash.lower_for_training, lambda folder: {"gm": _transformed()}),
    "recover": (
        fxhash.recover,
        lambda folder: {
            "gm": _transformed(),
            "teacher": nn.Linear(32, 32),
            "batches": [torch.ones(1, 32)] * 2,
            "minutes": 1e-4,
            "steps": 1,
            "held_out": [torch.ones(1, 32)],
            "folder": folder / "recovery",
            "learning_rate": 0.1,
            "precision": "32",
            "seed": 0,
            "clock": time.monotonic,
        },
    ),
    "export_onnx": (
        fxhash.export_onnx,
        lambda folder: {
            "model": _transformed(),
            "inputs": (torch.zeros(1, 32),),
            "path": folder / "model.onnx",
            "dynamic_shapes": None,
            "dtype": None,
        },
    ),
    "summary": (fxhash.summary, lambda folder: {"gm": _transformed(), "verbose": False}),
    "SMHGenerator": (
        fxhash.SMHGenerator,
        lambda folder: {"plan": _transformed().smh_generator.plan, "device": "cpu"},
    ),
    "DeviceProfile": (
        fxhash.DeviceProfile,
        lambda folder: {
            field.name: getattr(fxhash.DeviceProfile(), field.name)
            for field in dataclasses.fields(fxhash.DeviceProfile)
        },
    ),
    "DeviceProfile.from_json": (
        fxhash.DeviceProfile.from_json,
        lambda folder: {"text": fxhash.DeviceProfile().to_json()},
    ),
    "profile_device": (fxhash.profile_device, lambda folder: {"device": "cpu", "seconds": 0.01}),
    "CompressionPlan": (
        fxhash.CompressionPlan,
        lambda folder: {
            field.name: getattr(_transformed().smh_generator.plan, field.name)
            for field in dataclasses.fields(fxhash.CompressionPlan)
        },
    ),
    "CompressionPlan.from_json": (
        fxhash.CompressionPlan.from_json,
        lambda folder: {"text": _transformed().smh_generator.plan.to_json()},
    ),
    "zoo.create": (zoo.create, lambda folder: {"name": "lenet", "num_classes": 10, "in_channels": 1}),
    "zoo.list": (zoo.list, lambda folder: {"family": "resnet"}),
}


def signature_of(function: Callable[..., Any]) -> list[str]:
    """The names of a function's arguments; those that all models have, for one that builds one of them."""
    named = [name for name in inspect.signature(function).parameters if name != "options"]
    return [*named, "num_classes", "in_channels"] if function is zoo.create else named


def raised_by_us(error: Exception) -> bool:
    """Whether a line of this package raises an error on purpose, in one line of text."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    on_purpose = last.filename.startswith(PACKAGE) and (last.line or "").startswith("raise ")
    text = str(error)
    return (
        isinstance(error, (fxhash.FxhashError, TypeError)) and on_purpose and 0 < len(text) < 600 and "\n" not in text
    )


def problems_of(function: str, argument: str, folder: Path) -> list[tuple[str, str, str]]:
    """The wrong values that a function answers with an error that isn't ours, or with a file and an error."""
    call, right = FUNCTIONS[function]
    problems = []
    for kind, make in WRONG.items():
        given = right(folder) | {argument: make()}
        before = sorted(folder.rglob("*"))
        try:
            call(**given)
        except Exception as error:
            if not raised_by_us(error):
                problems.append((kind, type(error).__name__, shown(error)))
            if sorted(folder.rglob("*")) != before:
                problems.append((kind, "has written", ""))
    return problems


CASES = [(name, argument) for name, (function, _) in FUNCTIONS.items() for argument in signature_of(function)]


@pytest.mark.parametrize(
    ("function", "argument"),
    # Exporting takes seconds, where it comes to that.
    [pytest.param(*case, marks=pytest.mark.slow if case[0] == "export_onnx" else ()) for case in CASES],
)
def test_wrong_values_are_refused_in_our_words_or_work(function, argument, tmp_path, monkeypatch):
    if function == "export_onnx":
        pytest.importorskip("onnxscript")
    # Some of the strings are names of files.
    monkeypatch.chdir(tmp_path)
    assert problems_of(function, argument, tmp_path) == []


def test_every_public_function_is_in_the_table(tmp_path):
    described = [name for name in fxhash.__all__ if inspect.isfunction(getattr(fxhash, name))]
    classes = [name for name in fxhash.__all__ if inspect.isclass(getattr(fxhash, name))]
    # Errors, warnings and what functions return are made by functions of ours alone.
    constructed = [
        name for name in classes if not (name.endswith(("Error", "Warning")) or name in ("Summary", "Recovery"))
    ]
    assert {*described, *constructed} <= FUNCTIONS.keys()
    for name, (function, right) in FUNCTIONS.items():
        assert list(right(tmp_path)) == signature_of(function), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fxhash.transform(nn.Linear(9, 9), aspect=10**400), "aspect=1000.* is not a positive, finite number"),
        (lambda: fxhash.transform(nn.Linear(9, 9), device="x"), "device='x' can't be used: .* such as 'cpu'"),
        (lambda: fxhash.transform(nn.Linear(9, 9), seed=10**400), "neither a whole number of 64 bits nor a torch.Gen"),
        (
            lambda: fxhash.transform(nn.Linear(9, 9), include=lambda *_: 1 / 0),
            "for 'weight' it raised ZeroDivisionError",
        ),
        (lambda: fxhash.transform(BareModule()), r"call super\(\).__init__\(\)"),
        (lambda: fxhash.transform(nn.Sequential(BareModule())), r"call super\(\).__init__\(\)"),
        (lambda: fxhash.lower_for_deploy(_transformed(), memory_budget=0.5), "memory_budget=0.5 is no size"),
        (lambda: fxhash.lower_for_deploy(_transformed(), methods=1.5), "methods=1.5 is no dictionary"),
        (lambda: fxhash.lower_for_deploy(_transformed(), dtype=torch.int8), "dtype=torch.int8 is no type that a model"),
        (lambda: fxhash.summary(None), "expected a torch.nn.Module or GraphModule, got NoneType"),
        (lambda: fxhash.save(None, "path"), "expected a torch.nn.Module or GraphModule, got NoneType"),
        (lambda: fxhash.trace(nn.Linear(9, 9), expose="weight"), "expose='weight' is no list of the names of param"),
        (lambda: fxhash.trace(nn.Linear(9, 9), expose=["wieght"]), r"no parameter 'wieght' \(did you mean weight\?\)"),
        (lambda: zoo.create("lenet", num_classes=10**400), "num_classes must be at most 16777216, got 1000"),
    ],
)
def test_messages_say_what_to_do(call, message):
    with pytest.raises(fxhash.FxhashError, match=message):
        call()


def build_small():
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: fxhash.save(path, _transformed()), "in fxhash.save the model comes first"),
        (lambda path: fxhash.save(str(path), _transformed()), "in fxhash.save the model comes first"),
        (lambda path: fxhash.load(nn.Linear(32, 32), path), "in fxhash.load the path|can't be a file"),
        (lambda path: fxhash.save(_transformed(), path.with_suffix(".pt")), r"give 'x\.safetensors'"),
        (lambda path: fxhash.save(_transformed(), path.with_suffix(".ONNX")), r"give 'x\.safetensors'"),
        (lambda path: fxhash.save(_transformed(), path, dense_dtype="int8"), r"dense_dtype='int8' is no type to store"),
        (lambda path: fxhash.save(_transformed(), path, dtype="int9"), r"torch\.int8, torch\.int4 \(did you mean int8"),
        (lambda path: fxhash.load(_saved(path.parent), build_small), r"give the model that it builds, build_small\(\)"),
        (lambda path: fxhash.load(_saved(path.parent), lambda: None), r"give the model that it builds, it\(\)"),
        (lambda path: fxhash.transform(build_small), r"give the model that it builds, build_small\(\)"),
        (lambda path: fxhash.transform(nn.Linear), r"the class Linear: give a model of that class, Linear\(\.\.\.\)"),
        (lambda path: fxhash.lower_for_deploy(_transformed(), dtype="bf61"), "dtype='bf61' is no type that a model"),
        (lambda path: fxhash.transform(build_small(), 0.9, exclude="wieght"), "exclude='wieght' .*did you mean weight"),
        (lambda path: fxhash.transform(build_small(), 0.9, include=["0", "^w"]), r"include='\^w' is found in no param"),
    ],
)
def test_a_wrong_step_is_answered_by_the_right_one(call, message, tmp_path):
    _saved(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(fxhash.FxhashError, match=message) as caught:
        call(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "torch.bfloat16"])
def test_types_by_name(name, tmp_path):
    lowered = fxhash.lower_for_deploy(_transformed(), dtype=name)
    assert {parameter.dtype for parameter in lowered.parameters()} == {torch.bfloat16}
    for dtype, path in ((name, tmp_path / "by_name"), (torch.bfloat16, tmp_path / "by_type")):
        fxhash.save(_transformed(), path, dtype=dtype)
    assert (tmp_path / "by_name").read_bytes() == (tmp_path / "by_type").read_bytes()


def test_8_bits_by_name(tmp_path):
    for dtype, path in (("int8", tmp_path / "by_name"), (torch.int8, tmp_path / "by_type")):
        fxhash.save(_transformed(), path, dtype=dtype)
    assert (tmp_path / "by_name").read_bytes() == (tmp_path / "by_type").read_bytes()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    "call",
    [
        fxhash.transform,
        fxhash.trace,
        fxhash.lower_for_deploy,
        fxhash.materialize,
        fxhash.summary,
        lambda model: fxhash.save(model, "saved.safetensors"),
        lambda model: fxhash.load("model.safetensors", model),
    ],
)
@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(1, 32))])
def test_a_script_module_is_refused(call, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _saved(tmp_path)
    with pytest.raises(fxhash.FxhashError) as caught:
        call(make(build_small()))
    assert raised_by_us(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_extreme_numbers():
    for budget in (10**400, 8e6):
        assert_same_outputs(
            _transformed(), fxhash.lower_for_deploy(_transformed(), memory_budget=budget), torch.ones(1, 32)
        )
    for aspect in (5e-324, 1e-300):
        assert fxhash.transform(nn.Linear(32, 32), 0.99, aspect=aspect)(torch.zeros(1, 32)).isfinite().all()
    # One column has as many factors as there are weights.
    for aspect in (1e300, 10**300):
        with pytest.raises(fxhash.BudgetError, match="too small to compress"):
            fxhash.transform(nn.Linear(32, 32), 0.99, aspect=aspect)


def test_a_type_that_can_not_hold_a_parameter_is_refused():
    gm = fxhash.transform(nn.Linear(32, 32), 0.5, seed=0)
    with torch.no_grad():
        gm.bias[3] = 1e6
    with pytest.raises(fxhash.PlanError, match=r"torch\.float16 can't hold the value 1e\+06 of parameter 'bias'"):
        fxhash.lower_for_deploy(gm, dtype=torch.float16)
    lowered = fxhash.lower_for_deploy(gm, dtype=torch.bfloat16)
    torch.testing.assert_close(
        lowered(torch.zeros(1, 32).bfloat16()).float()[0, 3], torch.tensor(1e6), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_hooks_of_gradients_are_refused(name, register):
    """They would be called no more, without a word."""
    model = nn.Linear(32, 32)
    handle = getattr(model.get_parameter(name), register)(lambda *_: None)
    with pytest.raises(fxhash.TransformError, match=f"the parameter '{name}' has hooks that see its gradient"):
        fxhash.transform(model, 0.5)
    handle.remove()
    fxhash.transform(model, 0.5)


def test_a_type_that_can_not_hold_the_statistics_of_a_norm_is_refused():
    gm = fxhash.transform(nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32)), 0.5, seed=0)
    gm.get_buffer("1.running_var").fill_(1e5)
    with pytest.raises(fxhash.PlanError, match=r"can't hold the value 1e\+05 of buffer '1.running_var'"):
        fxhash.lower_for_deploy(gm, dtype=torch.float16)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
@pytest.mark.parametrize("function", [fxhash.transform, fxhash.trace])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_sparse_parameters_are_refused(layout, function):
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[0].weight = nn.Parameter(getattr(model[0].weight.detach(), layout)())
    with pytest.raises(fxhash.TransformError, match=r"parameter '0\.weight' has the layout torch\..*to_dense"):
        function(model)


def test_expressions_may_come_from_an_iterator():
    gm = fxhash.transform(nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)), 0.8, include=iter(["0.weight"]))
    assert [parameter.fqn for parameter in gm.smh_generator.plan.hashed] == ["0.weight"]
