"""Files that are made to harm who opens them: one clear error, in little memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fxhash
from fxhash.storage.reading import read_plans
from tests.helpers import assert_same_outputs
from tests.storage.forgery import forge, opened
from tests.storage.hostile_files import HOSTILE, NOT_FINITE, RIGHT, STEPS, network, write_honest

# Loads each file that is named on its command line, allowed as much address space more than after an honest file as
# the file, the model and 100 MB take; prints the error, and the seconds of the CPU that it took.
UNDER_A_LIMIT = """
import json, os, sys, time, traceback
import torch
import fxhash
from fxhash.storage.reading import read_plans
from tests.storage.hostile_files import network
from tests.storage.limits import limited_memory

torch.set_num_threads(1)
honest, *paths = sys.argv[1:]
model = network()
model_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
fxhash.load(honest, model)
read_plans(honest)
for path in paths:
    for open_file in (lambda: fxhash.load(path, model), lambda: read_plans(path)):
        start, error = time.process_time(), None
        with limited_memory(os.path.getsize(path) + model_bytes + 100_000_000):
            try:
                open_file()
            except BaseException as caught:
                error = [isinstance(caught, fxhash.FxhashError), str(caught), traceback.format_exc()[-2000:]]
        print(json.dumps([path, time.process_time() - start, error]), flush=True)
"""
# What `read_plans` can't know: what of a file a model asks for.
ONLY_A_MODEL_SHOWS = {name for name in HOSTILE if name.startswith(("steps_", "scales_"))} | {
    "a_tensor_that_the_model_has_no_place_for",
    "as_many_plans_as_a_file_may_have",
    "submodules_that_the_model_has_not",
    "submodules_that_are_no_modules",
    "a_scalar_where_a_matrix_belongs",
    "as_many_parameters_as_a_plan_may_have",
    "a_further_column_in_other_bits_than_its_block",
    "kernels_in_four_bits",
    "a_byte_more_than_two_entries_each",
    "integers_that_no_training_gives",
    "integers_of_eight_bits_that_were_trained_in_four",
    "a_group_of_less_than_there_are_steps",
    "floats_that_were_trained_in_eight_bits_and_rounded_otherwise",
    "a_plan_beside_a_description",
}


@pytest.fixture
def honest(tmp_path):
    path = tmp_path / "honest.safetensors"
    write_honest(path)
    return path


def is_plain_line(text: str) -> bool:
    """Whether a message is a line of readable length that a terminal prints as it is."""
    return text.isprintable() and len(text) < 1000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't limit the address space")
def test_hostile_files_take_little_memory_and_time(honest, tmp_path):
    root = Path(__file__).parents[2]
    paths = [tmp_path / f"{name}.safetensors" for name in HOSTILE]
    for path, write in zip(paths, HOSTILE.values(), strict=True):
        write(path, *opened(honest))
    result = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(honest), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    reported = [json.loads(line) for line in result.stdout.splitlines()]
    assert [path for path, _, _ in reported[::2]] == list(map(str, paths)), result.stderr
    wrong = {}
    for index, (path, seconds, error) in enumerate(reported):
        name, what = Path(path).stem, ["load", "read_plans"][index % 2]
        if error is None:
            if what == "load" or name not in ONLY_A_MODEL_SHOWS:
                wrong[name, what] = "accepted"
        elif not error[0] or "memory" in error[1] or not is_plain_line(error[1]):
            wrong[name, what] = error[2]
        # Two, on a machine that does nothing else.
        if seconds > 3:
            wrong[name, what, "seconds"] = seconds
    assert not wrong, "\n".join(f"{place}: {what}" for place, what in wrong.items())


@pytest.mark.parametrize("name", NOT_FINITE)
def test_what_is_not_finite_is_refused_unless_asked_for(honest, name):
    NOT_FINITE[name](honest, *opened(honest))
    with pytest.raises(fxhash.CheckpointError, match="allow_nan=True") as caught:
        fxhash.load(honest, network())
    assert is_plain_line(str(caught.value))
    if "overflow" not in name:
        with pytest.raises(fxhash.CheckpointError, match="allow_nan=True"):
            read_plans(honest)
    fxhash.load(honest, network(), allow_nan=True)


def test_infinities_of_a_buffer_are_a_mask(honest):
    assert fxhash.load(honest, network()).mask.isinf().any()


def test_a_model_that_is_not_finite_is_not_saved_unless_asked_for(honest):
    before = honest.read_bytes()
    gm = fxhash.transform(network(), 0.3, seed=0)
    with torch.no_grad():
        gm.smh_generator.right[0, 0] = torch.nan
    for dtype in (None, torch.bfloat16, torch.int8):
        with pytest.raises(fxhash.CheckpointError, match=r"right' holds NaN, so nothing is written.*allow_nan=True"):
            fxhash.save(gm, honest, dtype=dtype)
    with pytest.raises(fxhash.CheckpointError, match=r"right' has values that torch\.int8 can't hold"):
        fxhash.save(gm, honest, dtype=torch.int8, allow_nan=True)
    assert honest.read_bytes() == before
    for dtype in (None, torch.bfloat16):
        fxhash.save(gm, honest, dtype=dtype, allow_nan=True)
        loaded = fxhash.load(honest, network(), allow_nan=True)
        assert loaded.smh_generator.right.isnan().sum() == 1
    with torch.no_grad():
        gm.smh_generator.right[0, 0] = 1e30
    with pytest.raises(fxhash.CheckpointError, match=r"right' has values that torch\.float16 can't hold"):
        fxhash.save(gm, honest, dtype=torch.float16, allow_nan=True)
    with torch.no_grad():
        gm.smh_generator.right[0, 0] = 1.0
        gm.smh_generator.log_scales[1] = 100.0
    with pytest.raises(
        fxhash.CheckpointError, match=r"weight 'body\.weight' is generated with NaN or infinity, so nothing"
    ):
        fxhash.save(gm, honest)


def test_a_loaded_model_is_not_the_file(honest):
    """Where the model has no memory of its own, its values are still not the bytes of the file."""
    fxhash.save(fxhash.load(honest, network()), honest)
    with torch.device("meta"):
        model = network()
    gm, x = fxhash.load(honest, model).eval(), torch.randn(2, 3, 6, 6)
    kept = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    content = honest.read_bytes()
    with open(honest, "r+b") as file:
        file.write(content[:5000] + bytes(len(content) - 5000))
    assert all(torch.equal(kept[name], tensor) for name, tensor in gm.state_dict().items())
    gm(x)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(fxhash.CheckpointError, match="is no file"):
        fxhash.load(tmp_path / "pipe.safetensors", network())


def test_an_honest_file_of_many_parameters_loads(tmp_path):
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(100)])
    gm = fxhash.transform(model, 1.0, seed=0)
    for dtype in (None, torch.int8):
        fxhash.save(gm, tmp_path / "many.safetensors", dtype=dtype)
        loaded = fxhash.load(tmp_path / "many.safetensors", model)
        assert_same_outputs(gm, loaded, torch.randn(2, 4), rtol=0 if dtype is None else 0.5)


def test_forged_values_that_are_honest_load(honest):
    """The helpers write what `save` writes."""
    plan, tensors = opened(honest)
    expected = fxhash.load(honest, network())
    forge(honest, plan, tensors)
    assert_same_outputs(expected, fxhash.load(honest, network()), torch.randn(2, 3, 6, 6), rtol=0)
    assert tensors[RIGHT].dtype == torch.int8
    assert tensors[STEPS].shape == (tensors[RIGHT].shape[0], 1)
