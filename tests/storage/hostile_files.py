"""Files that are made to harm who opens them, each with a digest that is right for its content.

`HOSTILE` has a function for each: it writes the file, given the path and the plan and tensors of an honest file in 8
bits of `network()`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import fxhash
from fxhash.storage.small_file import DESCRIPTION, VALUES
from tests.storage.forgery import (
    described,
    forge,
    forge_header,
    forge_packed,
    opened,
    packed,
    with_description,
)

Write: TypeAlias = Callable[[Path, dict[str, Any], dict[str, Tensor]], None]

HOSTILE: dict[str, Write] = {}
RIGHT, LEFT, SCALES = "smh_generator.right", "smh_generator.left.0", "smh_generator.log_scales"
STEPS = f"{RIGHT}.steps"


class Network(nn.Module):
    """A convolution that becomes separable, a batch norm, a linear layer, and a frozen mask of infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.body = nn.Conv2d(24, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 40)
        self.register_buffer("mask", torch.where(torch.arange(40) < 30, 0.0, -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.stem(x))).mean((2, 3))) + self.mask


def network() -> nn.Module:
    """The model that the files are for."""
    return Network()


def write_honest(path: Path) -> None:
    """An honest file of `network()` in 8 bits."""
    torch.manual_seed(0)
    fxhash.save(fxhash.transform(network(), 0.3, seed=0), path, dtype=torch.int8)


def hostile(write: Write) -> Write:
    HOSTILE[write.__name__] = write
    return write


@hostile
def steps_of_another_shape(path, plan, tensors):
    forge(path, plan, {**tensors, STEPS: torch.ones(1_000_000, 1, 1)})


@hostile
def steps_of_a_shape_that_fits_too(path, plan, tensors):
    forge(path, plan, {**tensors, STEPS: torch.ones(1, 1)})


@hostile
def steps_that_are_absent(path, plan, tensors):
    del tensors[STEPS]
    forge(path, plan, tensors)


@hostile
def steps_of_another_type(path, plan, tensors):
    forge(path, plan, {**tensors, STEPS: tensors[STEPS].double()})


@hostile
def steps_of_a_further_column(path, plan, tensors):
    (name,) = [name for name in tensors if "more_left" in name]
    forge(path, plan, {**tensors, f"{name}.steps": torch.ones(1, 1, dtype=torch.bfloat16)})


@hostile
def a_further_column_in_other_bits_than_its_block(path, plan, tensors):
    (name,) = [name for name in tensors if "more_left" in name]
    forge(path, plan, {**tensors, name: torch.zeros(-(-len(tensors[name]) // 2), dtype=torch.uint8)})


@hostile
def kernels_in_four_bits(path, plan, tensors):
    name = "smh_generator.kernels.0"
    forge(path, plan, {**tensors, name: torch.zeros(-(-tensors[name].numel() // 2), dtype=torch.uint8)})


@hostile
def a_byte_more_than_two_entries_each(path, plan, tensors):
    forge(path, plan, {**tensors, RIGHT: torch.zeros(tensors[RIGHT].numel() // 2 + 2, dtype=torch.uint8)})


def in_bits(plan, bits, group=None):
    return {**plan, "format": 3, "factor_bits": {"bits": bits, "group": group}}


@hostile
def integers_that_no_training_gives(path, plan, tensors):
    forge(path, in_bits(plan, 8), {**tensors, RIGHT: torch.ones_like(tensors[RIGHT])})


@hostile
def integers_of_eight_bits_that_were_trained_in_four(path, plan, tensors):
    forge(path, in_bits(plan, 4), tensors)


@hostile
def a_group_of_less_than_there_are_steps(path, plan, tensors):
    forge(path, in_bits(plan, 8, 2), tensors)


@hostile
def a_group_of_nothing(path, plan, tensors):
    forge(path, in_bits(plan, 8, 0), tensors)


@hostile
def a_group_of_a_text(path, plan, tensors):
    forge(path, in_bits(plan, 8, "2"), tensors)


@hostile
def two_bits(path, plan, tensors):
    forge(path, in_bits(plan, 2), tensors)


@hostile
def bits_in_a_list(path, plan, tensors):
    forge(path, in_bits(plan, [8]), tensors)


@hostile
def bits_and_more(path, plan, tensors):
    forge(path, {**plan, "format": 3, "factor_bits": {"bits": 8, "group": None, "more": 1}}, tensors)


@hostile
def bits_of_nothing(path, plan, tensors):
    forge(path, {**plan, "format": 3, "factor_bits": None}, tensors)


@hostile
def floats_that_were_trained_in_eight_bits_and_rounded_otherwise(path, plan, tensors):
    fxhash.save(fxhash.transform(network(), 0.3, seed=0), path, dtype=torch.bfloat16)
    _, floats = opened(path)
    forge(path, in_bits(plan, 8), floats)


@hostile
def a_description_that_grows_a_thousandfold(path, plan, tensors):
    small = packed(plan, tensors)
    forge_packed(path, with_description(small, zlib.compress(b" " * 10**9, 1)))


@hostile
def a_description_of_as_much_as_it_may_be(path, plan, tensors):
    description = described(packed(plan, tensors))
    description["tensors"] = {f"t{n}": ["uint8", 0] for n in range(60_000)}
    forge_packed(path, with_description(packed(plan, tensors), description))


@hostile
def a_description_that_ends_early(path, plan, tensors):
    small = packed(plan, tensors)
    forge_packed(path, with_description(small, small[DESCRIPTION].numpy().tobytes()[:-5]))


@hostile
def a_description_with_more_behind_it(path, plan, tensors):
    small = packed(plan, tensors)
    forge_packed(path, with_description(small, small[DESCRIPTION].numpy().tobytes() + b"more"))


@hostile
def a_description_of_floats(path, plan, tensors):
    small = packed(plan, tensors)
    forge_packed(path, {**small, DESCRIPTION: small[DESCRIPTION].float()})


def with_shape(*shape, name=RIGHT):
    def write(path, plan, tensors):
        small = packed(plan, tensors)
        description = described(small)
        description["tensors"][name] = list(shape)
        forge_packed(path, with_description(small, description))

    return write


HOSTILE |= {
    "a packed tensor of more than there is": with_shape("float32", 10**6),
    "a packed tensor of a billion times nothing": with_shape("float32", 10**9, 10**9, 0),
    "a packed tensor of numbers that overflow": with_shape("int8", *[2**62] * 4),
    "a packed tensor of a negative size": with_shape("int8", -1, -5),
    "a packed tensor of no whole size": with_shape("int8", 1.5),
    "a packed tensor of a hundred dimensions": with_shape("int8", *[1] * 100),
    "a packed tensor of less than there is": with_shape("int8", 1),
    "a packed tensor of another type": with_shape("Tensor", 1),
    "a packed tensor that lies where its type can't": with_shape("float64", 1, name="mask"),
    "a packed tensor of a type in a list": with_shape(["int8"], 1),
    "a packed tensor of nothing at all": with_shape(),
    "a packed tensor of a truth value": with_shape("bool", *[1]),
}


@hostile
def more_values_than_are_described(path, plan, tensors):
    small = packed(plan, tensors)
    forge_packed(path, {**small, VALUES: torch.cat([small[VALUES], torch.zeros(10**6, dtype=torch.uint8)])})


@hostile
def a_plan_beside_a_description(path, plan, tensors):
    forge(path, plan, packed(plan, tensors))


@hostile
def steps_of_what_is_not_quantized(path, plan, tensors):
    forge(path, plan, {**tensors, f"{SCALES}.steps": torch.ones(1)})


@hostile
def steps_of_floats(path, plan, tensors):
    forge(path, plan, {**tensors, RIGHT: tensors[RIGHT].float()})


@hostile
def scales_in_8_bits(path, plan, tensors):
    forge(path, plan, {**tensors, SCALES: tensors[SCALES].to(torch.int8)})


def with_value(name: str, value: float, *more: str) -> Write:
    def write(path, plan, tensors):
        changed = {each: tensors[each].clone() for each in (name, *more)}
        for tensor in changed.values():
            tensor.view(-1)[0] = value
        forge(path, plan, {**tensors, **changed})

    return write


NOT_FINITE = {
    f"{value} in {name}": with_value(name, value)
    for name in (STEPS, f"{LEFT}.steps", SCALES, "smh_generator.shifts", "head.bias", "norm.weight")
    for value in (torch.nan, torch.inf, -torch.inf)
} | {
    "NaN in a buffer": with_value("norm.running_mean", torch.nan),
    "steps that overflow": with_value(STEPS, 3e38),
    "a scale that overflows": with_value(SCALES, 1e4),
    "a product that overflows": with_value(STEPS, 1e30, f"{LEFT}.steps"),
}


@hostile
def infinite_factors_in_float32(path, plan, tensors):
    del tensors[STEPS]
    forge(path, plan, {**tensors, RIGHT: torch.full(tensors[RIGHT].shape, torch.inf)})


@hostile
def ten_billion_columns(path, plan, tensors):
    plan["layout"].update(cols=10**10, rows=3, rank=1)
    for row, parameter in enumerate(each for each in plan["parameters"] if not each.get("dense_because")):
        parameter.update(first_row=row, rank=1, more_rows=0)
    forge(path, plan, tensors)


@hostile
def more_columns_than_weights_and_tensors_of_that_size(path, plan, tensors):
    ten_billion_columns(path, plan, tensors)
    plan["layout"]["cols"] = 10**6
    tensors = {name: tensor for name, tensor in tensors.items() if "more_left" not in name}
    tensors |= {f"smh_generator.left.{index}": torch.ones(1, 1, dtype=torch.int8) for index in range(3)}
    tensors |= {f"smh_generator.left.{index}.steps": torch.ones(1, 1) for index in range(3)}
    tensors |= {RIGHT: torch.ones(1, 10**6, dtype=torch.int8), STEPS: torch.ones(1, 1)}
    forge(path, plan, tensors)


@hostile
def a_shape_of_300_numbers_of_4000_digits(path, plan, tensors):
    forge(path, json.dumps(plan).replace('"shape": [40]', '"shape": [' + ", ".join(["1" * 4000] * 300) + "]"), tensors)


@hostile
def a_shape_of_60_numbers_of_19_digits(path, plan, tensors):
    plan["parameters"][-1]["shape"] = [2**62] * 60
    forge(path, plan, tensors)


@hostile
def a_number_of_a_million_digits(path, plan, tensors):
    forge(path, json.dumps(plan).replace('"aspect": 16.0', f'"aspect": {"1" * 10**6}'), tensors)


@hostile
def a_number_of_a_million_digits_in_the_metadata(path, plan, tensors):
    header = {"__metadata__": {"fxhash": f'{{"sha256": {"1" * 10**6}, "plan": "{{}}"}}'}}
    forge_header(path, json.dumps(header).encode())


@hostile
def parameters_by_the_ten_thousand(path, plan, tensors):
    more = [{"fqn": f"p{n}", "shape": [1], "dtype": "float32", "dense_because": "x"} for n in range(60_000)]
    plan["parameters"] += more
    forge(path, plan, tensors)


@hostile
def names_by_the_ten_thousand(path, plan, tensors):
    plan["parameters"][-1]["aliases"] = [f"n{n}" for n in range(60_000)]
    forge(path, plan, tensors)


@hostile
def unused_names_by_the_ten_thousand(path, plan, tensors):
    plan["unused"] = [f"n{n}" for n in range(60_000)]
    forge(path, plan, tensors)


@hostile
def a_name_of_a_million_letters(path, plan, tensors):
    plan["parameters"][-1]["fqn"] = "n" * 10**6
    forge(path, plan, tensors)


@hostile
def a_reason_of_a_million_letters(path, plan, tensors):
    plan["parameters"][-1]["dense_because"] = "\x1b[31m" * 10**5
    forge(path, plan, tensors)


@hostile
def tensors_by_the_ten_thousand(path, plan, tensors):
    entry = '"t{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    forge_header(path, ("{" + ",".join(entry.format(n) for n in range(60_000)) + "}").encode())


@hostile
def a_tensor_of_a_million_dimensions(path, plan, tensors):
    shape = ",".join(["1"] * 1_500_000)
    forge_header(path, f'{{"t":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}'.encode(), b"\0")


@hostile
def a_long_header(path, plan, tensors):
    forge_header(path, b"{" + b" " * 17_000_000 + b"}")


@hostile
def lists_by_the_million(path, plan, tensors):
    forge(path, "[" + ",".join(["[]"] * 500_000) + "]", tensors)


@hostile
def objects_by_the_million(path, plan, tensors):
    forge(path, "[" + ",".join(['{"":0}'] * 300_000) + "]", tensors)


@hostile
def objects_in_the_metadata(path, plan, tensors):
    content = '{"sha256": "", "plan": [' + ",".join(["{}"] * 500_000) + "]}"
    forge_header(path, json.dumps({"__metadata__": {"fxhash": content}}).encode())


@hostile
def a_list_in_a_list_in_a_list(path, plan, tensors):
    forge(path, "[" * 100_000, tensors)


@hostile
def a_plan_that_is_no_text(path, plan, tensors):
    header = {"__metadata__": {"fxhash": json.dumps({"sha256": "", "plan": plan})}}
    forge_header(path, json.dumps(header).encode())


@hostile
def a_tensor_that_the_model_has_no_place_for(path, plan, tensors):
    forge(path, plan, {**tensors, "\x1b[31m" * 100: torch.zeros(1)})


@hostile
def a_tensor_of_four_bits(path, plan, tensors):
    forge_header(path, b'{"t":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"\0")


@hostile
def as_many_parameters_as_a_plan_may_have(path, plan, tensors):
    more = [{"fqn": f"p{n}", "shape": [1] * 8, "dtype": "float32", "dense_because": "x"} for n in range(16_000)]
    plan["parameters"] += [{**parameter, "aliases": [parameter["fqn"] + "again"]} for parameter in more]
    forge(path, {**plan, "compress": 1.0}, tensors)


@hostile
def as_many_objects_as_a_plan_may_have(path, plan, tensors):
    forge(path, "[" + ",".join(['{"":[0.5,0.5]}'] * 32_000) + ',""' * 300_000 + "]", tensors)


@hostile
def as_many_tensors_as_a_header_may_have(path, plan, tensors):
    entry = '"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    forge_header(path, ("{" + ",".join(entry.format(n) for n in range(39_000)) + "}").encode())


@hostile
def as_many_dimensions_as_a_header_may_have(path, plan, tensors):
    shape = ",".join(["1"] * 1_000_000)
    forge_header(path, f'{{"t":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}'.encode(), b"\0")


@hostile
def characters_of_four_bytes(path, plan, tensors):
    header = json.dumps({"__metadata__": {"fxhash": "\U0001f600" + "a" * 16_000_000}}, ensure_ascii=False)
    forge_header(path, header.encode())


@hostile
def characters_of_four_bytes_in_the_plan(path, plan, tensors):
    content = '{"sha256": "", "plan": "\\ud83d\\ude00' + "a" * 16_000_000 + '"}'
    forge_header(path, json.dumps({"__metadata__": {"fxhash": content}}).encode())


@hostile
def brackets_written_as_escapes(path, plan, tensors):
    content = '{"sha256": "", "plan": [' + "\\u005b\\u005d\\u002c" * 400_000 + "0]}"
    header = '{"__metadata__": {"fxhash": "' + content.replace('"', '\\"') + '"}}'
    forge_header(path, header.encode())


def of_submodules(**plans: Any) -> str:
    return '{"format":2,"submodules":' + json.dumps(plans) + "}"


@hostile
def submodules_by_the_ten_thousand(path, plan, tensors):
    forge(path, of_submodules(**{f"s{n}": 0 for n in range(60_000)}), tensors)


@hostile
def as_many_plans_as_a_file_may_have(path, plan, tensors):
    forge(path, of_submodules(**{f"s{n}": {**plan, "compress": 1.0} for n in range(1_000)}), tensors)


@hostile
def a_submodule_in_a_submodule(path, plan, tensors):
    forge(path, of_submodules(**{"a": plan, "a.b": plan}), tensors)


@hostile
def a_submodule_without_a_name(path, plan, tensors):
    forge(path, of_submodules(**{"": plan}), tensors)


@hostile
def a_submodule_with_a_long_name(path, plan, tensors):
    forge(path, of_submodules(**{"\x1b[31m" * 10**5: plan}), tensors)


@hostile
def no_submodules(path, plan, tensors):
    forge(path, of_submodules(), tensors)


@hostile
def submodules_in_a_list(path, plan, tensors):
    forge(path, '{"format":2,"submodules":' + json.dumps([plan]) + "}", tensors)


@hostile
def submodules_that_the_model_has_not(path, plan, tensors):
    forge(path, of_submodules(**{"__class__": plan, "stem": plan}), tensors)


@hostile
def submodules_that_are_no_modules(path, plan, tensors):
    forge(path, of_submodules(forward=plan), tensors)


@hostile
def a_factory_that_is_no_text(path, plan, tensors):
    header = {"__metadata__": {"fxhash": json.dumps({"sha256": "", "plan": "{}", "factory": [1]})}}
    forge_header(path, json.dumps(header).encode())


@hostile
def a_factory_with_another_digest(path, plan, tensors):
    forge(path, plan, tensors)
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + size])
    stored = json.loads(header["__metadata__"]["fxhash"])
    header["__metadata__"]["fxhash"] = json.dumps({**stored, "factory": '{"name":"os:getcwd","arguments":{}}'})
    forge_header(path, json.dumps(header).encode(), content[8 + size :])


@hostile
def a_scalar_where_a_matrix_belongs(path, plan, tensors):
    forge(path, plan, {**tensors, RIGHT: tensors[RIGHT].flatten()[0].clone()})
