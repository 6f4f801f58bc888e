"""Forged files by the thousand: honest ones with changes to plan, tensors and header, and a digest that is right again.

Each is refused with an `FxhashError`, or is a model like any other: it has the plan and tensors of the file, finite
weights, and no more memory than the original model and the file allow.
"""

from __future__ import annotations

import copy
import json
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxhash
from fxhash.storage.reading import read_plan
from fxhash.storage.small_file import DESCRIPTION
from tests.storage.forgery import (
    described,
    forge,
    forge_header,
    forge_packed,
    in_earlier_form,
    opened,
    packed,
    with_description,
)
from tests.storage.hostile_files import network
from tests.storage.limits import limited_memory

NUMBERS = st.one_of(
    st.sampled_from(
        [-1, 0, 1, 2, 3, 16, 24, 40, 216, 1000, 2**31, 2**53, 2**63 - 1, 2**63, 10**10, 10**18, 10**19, 10**40]
    ),
    st.integers(-5, 2000),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.3, 0.5, 1.0, 1e-300, 1e300, -0.0]),
)
STRINGS = st.one_of(
    st.sampled_from(["", "float32", "float64", "float16", "bfloat16", "int64", "complex64", "Tensor", "nn", "frozen"]),
    st.sampled_from(
        ["stem.weight", "body.weight", "head.weight", "head.bias", "norm.weight", "norm.running_mean", "mask"]
    ),
    st.sampled_from(["\x1b[31m", "\u202e", "\n", "a" * 2000, "\ud800", "\0", "__class__", "smh_generator", "\\"]),
    st.text(max_size=5),
)
# Of tensors; the library that writes them takes no halves of characters.
NAMES = STRINGS.map(lambda text: text.encode(errors="ignore").decode())
VALUES = st.recursive(
    st.one_of(NUMBERS, STRINGS, st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(STRINGS, inner, max_size=3)),
    max_leaves=8,
)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool)
CHANGES = (
    *("plan value", "plan value", "plan entry", "plan number", "plan number", "header", "text"),
    *("drop", "rename", "add", "shape", "type", "value", "value", "swap", "description", "description"),
)

FIELDS = ("kernels", "more_rows", "rank", "aliases", "factor_bits", "group")


@dataclass
class Forged:
    """A file that is being changed."""

    plan: Any
    tensors: dict[str, Tensor]
    text: str | None = None
    header: tuple[int, bytes] | None = None
    description: Any = None
    is_packed: bool = False

    def write(self, path: Path) -> None:
        plan = self.plan if self.text is None else self.text
        if self.is_packed and all(name.isprintable() for name in self.tensors):
            small = packed(plan, self.tensors)
            forge_packed(path, small if self.description is None else with_description(small, self.description))
        else:
            forge(path, plan, self.tensors)
        if self.header is not None:
            content = path.read_bytes()
            (size,) = struct.unpack_from("<Q", content)
            place, inserted = self.header
            place = place % size
            forge_header(path, content[8 : 8 + place] + inserted + content[8 + place : 8 + size], content[8 + size :])


def pick(draw: Any, options: Any) -> Any:
    """One of several values that hypothesis need not know."""
    return options[draw(st.integers(0, len(options) - 1))]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value of JSON, with every key or index of it."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def change_plan(draw: Any, forged: Forged, kind: str) -> None:
    if not places(forged.plan):
        return
    container, key = pick(draw, places(forged.plan))
    if kind == "plan number":
        numbers = [place for place in places(forged.plan) if type(place[0][place[1]]) in (int, float)]
        container, key = pick(draw, numbers or [(container, key)])
        container[key] = draw(
            st.one_of(NUMBERS, st.integers(-2, 2).map(lambda step: step + (container[key] if numbers else 0)))
        )
    elif kind == "plan value":
        container[key] = draw(VALUES)
    elif draw(st.booleans()):
        del container[key]
    elif isinstance(container, list):
        container.insert(key, copy.deepcopy(pick(draw, container)))
    else:
        container[
            draw(
                st.one_of(STRINGS, st.sampled_from(["kernels", "more_rows", "rank", "aliases", "factor_bits", "group"]))
            )
        ] = draw(VALUES)


def change_consistently(draw: Any, forged: Forged) -> None:
    """Other columns and ranks, with factors that have the shapes that they ask for."""
    layout, row = forged.plan["layout"], 0
    cols = draw(st.sampled_from([1, 2, 5, 16, 24, 100, 1000, 10**5, 10**6]))
    rank = draw(st.integers(1, 5))
    tensors = {name: tensor for name, tensor in forged.tensors.items() if "left" not in name and "right" not in name}
    for index, parameter in enumerate(each for each in forged.plan["parameters"] if not each.get("dense_because")):
        out, channels, *kernel = parameter["shape"]
        entries = out * channels * (parameter.get("kernels", 0) or torch.Size(kernel).numel())
        rows = -(-entries // cols)
        parameter.update(first_row=row, rank=rank, more_rows=0)
        tensors[f"smh_generator.left.{index}"] = torch.ones(rows, rank)
        row += rows
    tensors["smh_generator.right"] = torch.ones(rank, cols)
    layout.update(rows=row, cols=cols, rank=rank)
    forged.plan["compress"] = draw(st.sampled_from([0.3, 1.0]))
    forged.tensors = tensors


def change_tensors(draw: Any, forged: Forged, kind: str) -> None:
    tensors = forged.tensors
    name = pick(draw, sorted(tensors))
    tensor = tensors[name]
    if kind == "drop":
        del tensors[name]
    elif kind == "rename":
        tensors[draw(NAMES) or f"{name}.steps"] = tensors.pop(name)
    elif kind == "add":
        tensors[draw(NAMES) or f"{name}.steps"] = torch.ones(draw(st.lists(st.integers(0, 3), max_size=3)))
    elif kind == "shape":
        transposed, padded = tensor.transpose(0, -1) if tensor.dim() > 1 else tensor, tensor.flatten()
        more = torch.cat([padded, padded[:1]])
        shaped = pick(draw, [transposed, padded, more, tensor[None], padded[:0]])
        tensors[name] = shaped.clone(memory_format=torch.contiguous_format)
    elif kind == "type":
        tensors[name] = tensor.to(draw(st.sampled_from(DTYPES)))
    elif kind == "swap":
        other = pick(draw, sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensor.clone()
    elif tensor.is_floating_point() and tensor.numel():
        values = [torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-40, 0.0, 200.0]
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(values))
    elif tensor.dtype in (torch.int8, torch.uint8) and tensor.numel():
        values = [0, 1, 15, 127] + ([-128, -127] if tensor.dtype == torch.int8 else [16, 240, 255])
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(values))


def change_description(draw: Any, forged: Forged) -> None:
    """What a file says of the tensors that it holds as one."""
    forged.is_packed = True
    if not all(name.isprintable() for name in forged.tensors):
        return
    small = packed(forged.plan if forged.text is None else forged.text, forged.tensors)
    description = described(small)
    how = draw(st.sampled_from(["value", "number", "entry", "text", "bytes"]))
    if how == "bytes":
        content = small[DESCRIPTION].numpy().tobytes()
        place = draw(st.integers(0, len(content)))
        forged.description = content[:place] + draw(st.binary(max_size=3)) + content[place + draw(st.integers(0, 3)) :]
    elif how == "text":
        text = json.dumps(description)
        place = draw(st.integers(0, len(text)))
        forged.description = text[:place] + draw(st.text(max_size=3)) + text[place:]
    else:
        container, key = pick(draw, places(description))
        if how == "entry":
            del container[key]
        else:
            container[key] = draw(NUMBERS if how == "number" else VALUES)
        forged.description = description


def change(draw: Any, forged: Forged, kind: str) -> None:
    if kind.startswith("plan"):
        change_plan(draw, forged, kind)
    elif kind == "header":
        inserted = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"[", b'{"', b",", b"9" * 50, b"\\"])))
        forged.header = draw(st.integers(0, 10**6)), inserted
    elif kind == "description":
        change_description(draw, forged)
    elif kind == "text":
        text = json.dumps(forged.plan)
        place = draw(st.integers(0, len(text)))
        forged.text = text[:place] + draw(st.text(max_size=3)) + text[place:]
    elif forged.tensors:
        change_tensors(draw, forged, kind)


@pytest.fixture(scope="module")
def honest_files(tmp_path_factory):
    """The model, the plan and tensors of honest files of it in each type, and a path to write to."""
    path = tmp_path_factory.mktemp("forged") / "forged.safetensors"
    gm = fxhash.transform(network(), 0.3, seed=0)
    files = []
    trained = fxhash.quantize_factors(gm, 4, group=5)
    every = [(gm, dtype) for dtype in (None, "bfloat16", "int8", "int4")]
    for model, dtype in (*every, (trained, "int4"), (trained, None), (fxhash.quantize_factors(gm, 8), "int8")):
        fxhash.save(model, path, dtype=dtype)
        files.append(opened(path))
        # What torch imports at the first call is not timed.
        fxhash.load(path, network())
    plan, tensors = files[2]
    files.append((plan, in_earlier_form(tensors)))
    forge(path, *files[-1])
    fxhash.load(path, network())
    assert any(parameter.kernels for parameter in gm.smh_generator.plan.hashed)
    assert any(parameter.more_rows for parameter in gm.smh_generator.plan.hashed)
    return network(), files, path


def result_or_message(function: Any, *arguments: Any) -> tuple[Any, str]:
    try:
        return function(*arguments), ""
    except fxhash.FxhashError as error:
        return None, str(error)


def carry_out(honest_files, data) -> None:
    model, files, path = honest_files
    plan, tensors = pick(data.draw, files)
    forged = Forged(copy.deepcopy(plan), {name: tensor.clone() for name, tensor in tensors.items()})
    forged.is_packed = data.draw(st.booleans())
    kinds = data.draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3))
    # It needs a plan of the usual form.
    if data.draw(st.integers(0, 4)) == 0:
        change_consistently(data.draw, forged)
    for kind in kinds:
        change(data.draw, forged, kind)
    forged.write(path)
    start = time.process_time()
    model_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    with limited_memory(path.stat().st_size + model_bytes + 100_000_000):
        gm, message = result_or_message(fxhash.load, path, model)
        read, other_message = result_or_message(read_plan, path)
    assert time.process_time() - start < 2
    for text in (message, other_message, str(read).replace("\n", "")):
        assert text.isprintable()
    assert max(len(message), len(other_message)) < 1500
    if gm is None:
        return
    assert read is not None, other_message
    assert gm.smh_generator.plan == read
    assert read.trainable_after <= read.trainable_before
    assert all(gm.smh_generator(parameter.fqn).isfinite().all() for parameter in read.hashed)
    loaded_state = gm.state_dict()
    stored = opened(path)[1]
    assert loaded_state.keys() == {name for name in stored if not name.endswith(".steps")}
    for name, value in stored.items():
        if name in loaded_state and value.dtype == loaded_state[name].dtype:
            assert torch.equal(loaded_state[name], value)
    fxhash.save(gm, path)
    again = fxhash.load(path, model).state_dict()
    assert all(torch.equal(again[name], value) for name, value in loaded_state.items())


def test_a_step_that_no_entry_has_is_no_number(honest_files):
    """Where a row has one entry less than others, its last group may be empty; `read_plan` refuses it too."""
    model, files, path = honest_files
    for plan, tensors in files:
        for name in (name for name in tensors if name.endswith(".steps")):
            steps = tensors[name].clone()
            steps[-1, -1] = torch.nan
            forge(path, plan, {**tensors, name: steps})
            for read in (lambda: fxhash.load(path, model), lambda: read_plan(path)):
                with pytest.raises(fxhash.CheckpointError, match=r"holds NaN|holds integers that are not those of"):
                    read()


@settings(max_examples=500)
@given(data=st.data())
def test_forged_files_are_refused_or_right(honest_files, data):
    carry_out(honest_files, data)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(data=st.data())
def test_forged_files_by_the_thousand(honest_files, data):
    carry_out(honest_files, data)
