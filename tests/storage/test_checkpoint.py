"""Files: complete, small, without pickle, and never trusted."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import fxhash
import fxhash.zoo
from fxhash.storage.reading import read_plan
from tests.helpers import assert_same_outputs, generator_of, smallest_transform
from tests.models import MODELS, ResidualConvNet
from tests.storage.forgery import digest, forge, opened
from tests.strategies import random_models
from tests.test_quantized_form import rounded

every_integer = pytest.mark.parametrize(
    ("dtype", "bits", "group"), [("int8", 8, None), (torch.int4, 4, None), ("int4", 4, 5)]
)
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def stored(tmp_path):
    """A transformed model and its file."""
    gm = fxhash.transform(ResidualConvNet(), 0.3, seed=0)
    path = tmp_path / "model.safetensors"
    fxhash.save(gm, path)
    return gm, path


@given(case=random_models())
def test_save_then_load_is_the_identity(folder, case):
    model, x = case
    gm = smallest_transform(model, 0.5, seed=0)
    fxhash.save(gm, folder / "any.safetensors")
    loaded = fxhash.load(folder / "any.safetensors", model)
    assert loaded.training == model.training
    assert loaded.smh_generator.plan == gm.smh_generator.plan
    state, again = gm.state_dict(), loaded.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert_same_outputs(gm, loaded, x, rtol=0)


@every_model
def test_save_then_load_for(tmp_path, name):
    model, inputs = MODELS[name]
    torch.manual_seed(1)
    gm = smallest_transform(model(), 0.5, seed=0)
    gm(*inputs())
    fxhash.save(gm, tmp_path / "model.safetensors")
    torch.manual_seed(1)
    loaded = fxhash.load(tmp_path / "model.safetensors", model())
    assert_same_outputs(gm, loaded, *inputs())
    assert_same_outputs(gm.eval(), fxhash.lower_for_deploy(loaded), *inputs())


@every_model
def test_size_of_the_file(tmp_path, name):
    gm = smallest_transform(MODELS[name][0](), 0.5)
    fxhash.save(gm, tmp_path / "model.safetensors")
    kept = sum(tensor.numel() for tensor in [*gm.parameters(), *gm.buffers()])
    assert (tmp_path / "model.safetensors").stat().st_size <= 4 * kept * 1.02 + 64 * 1024


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
@given(case=random_models())
def test_narrow_factors(folder, dtype, error, case):
    """Each within half a step of what it was, and the same file again from what was read."""
    model, _ = case
    gm = smallest_transform(model, 0.5, seed=0)
    first, second = folder / "first.safetensors", folder / "second.safetensors"
    fxhash.save(gm, first, dtype=dtype)
    loaded = fxhash.load(first, model)
    names = dict(gm.named_parameters())
    for name, value in loaded.named_parameters():
        original = names[name]
        assert value.dtype == original.dtype
        if name.endswith((".right", ".log_scales")) or "left." not in name:
            continue
        assert ((value - original).abs() <= original.abs() * error + 1e-7).all()
    assert torch.equal(loaded.smh_generator.log_scales, gm.smh_generator.log_scales)
    fxhash.save(loaded, second, dtype=dtype)
    assert first.read_bytes() == second.read_bytes()


@every_integer
@given(case=random_models())
def test_integers_are_those_of_quantized_factors(folder, dtype, bits, group, case):
    """What is loaded has the values that the model had while it was trained, and gives the same file again."""
    model, x = case
    gm = smallest_transform(model, 0.5, seed=0)
    first, second = folder / "first.safetensors", folder / "second.safetensors"
    quantized = fxhash.quantize_factors(gm, bits, group=group)
    fxhash.save(quantized, first, dtype=dtype)
    loaded, expected = fxhash.load(first, model), rounded(gm, bits, group)
    assert generator_of(loaded).plan == generator_of(quantized).plan
    assert_equal_states(loaded, expected)
    assert_same_outputs(loaded, quantized, x, rtol=0)
    fxhash.save(loaded, second, dtype=dtype)
    assert first.read_bytes() == second.read_bytes()
    # To go on with training, what is rounded counts, and that it is.
    fxhash.save(quantized, first)
    assert_equal_states(fxhash.load(first, model), gm)
    assert generator_of(fxhash.load(first, model)).plan == generator_of(quantized).plan
    if group is None:
        fxhash.save(gm, second, dtype=dtype)
        untrained = fxhash.load(second, model)
        assert_equal_states(untrained, expected)
        assert generator_of(untrained).plan == generator_of(gm).plan


def assert_equal_states(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
def test_factors_that_were_trained_in_four_bits_are_stored_so(stored, dtype):
    gm, path = stored
    before = path.read_bytes()
    with pytest.raises(fxhash.PlanError, match=r'were trained in 4 bits: store them with dtype="int4", or without'):
        fxhash.save(fxhash.quantize_factors(gm, 4), path, dtype=dtype)
    assert path.read_bytes() == before


@every_integer
def test_size_of_a_file_of_integers(tmp_path, dtype, bits, group):
    """At most 1.15 times factors in so many bits and all else in its own type, and 4 kB for plan and names."""
    gm = fxhash.quantize_factors(fxhash.transform(fxhash.zoo.create("resnet20"), 0.1, seed=0), bits)
    fxhash.save(gm, tmp_path / "model.safetensors", dtype=dtype)
    plan = generator_of(gm).plan
    factors = plan.factor_parameters + plan.kernel_parameters
    others = sum(tensor.nbytes for tensor in gm.state_dict().values()) - 4 * factors
    assert plan.trainable_after == 26_972
    assert (tmp_path / "model.safetensors").stat().st_size <= 1.15 * (bits / 8 * factors + others) + 4000


def test_narrow_files_are_smaller_and_deploy(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    gm, x = fxhash.transform(model, 0.5, seed=0).eval(), torch.randn(8, 256)
    sizes = {}
    for dtype, tolerance in ((None, 0), (torch.bfloat16, 0.02), (torch.float16, 0.002), (torch.int8, 0.05)):
        fxhash.save(gm, tmp_path / "model.safetensors", dtype=dtype)
        sizes[dtype] = (tmp_path / "model.safetensors").stat().st_size
        loaded = fxhash.load(tmp_path / "model.safetensors", model)
        assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
        with torch.no_grad():
            assert (fxhash.lower_for_deploy(loaded)(x) - gm(x)).norm() <= tolerance * gm(x).norm() + 1e-5
    assert sizes[torch.bfloat16] < 0.51 * sizes[None]
    assert sizes[torch.int8] < 0.27 * sizes[None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
@given(case=random_models())
def test_all_but_factors_in_a_narrower_type(folder, dtype, case):
    """Rounded once; generators, integers and what is no wide floating-point number as they are."""
    model, x = case
    gm = smallest_transform(model, 0.5, seed=0)
    narrow = getattr(torch, str(dtype).removeprefix("torch."))
    first, second = folder / "first.safetensors", folder / "second.safetensors"
    fxhash.save(gm, first, dense_dtype=dtype)
    loaded = fxhash.load(first, model)
    for name, value in loaded.state_dict().items():
        original = gm.state_dict()[name]
        assert value.dtype == original.dtype
        is_rounded = original.is_floating_point() and "smh_generator" not in name
        assert torch.equal(value, original.to(narrow).to(original.dtype) if is_rounded else original), name
    fxhash.save(loaded, second, dense_dtype=dtype)
    assert first.read_bytes() == second.read_bytes()
    assert_same_outputs(fxhash.load(second, model), loaded, x, rtol=0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_file_with_all_but_factors_in_16_bits(tmp_path, device):
    """Half of what a batch norm takes; on the meta device as well."""
    gm = fxhash.transform(fxhash.zoo.create("resnet20"), 0.1, seed=0).eval()
    sizes = {}
    for dense_dtype in (None, "bfloat16"):
        fxhash.save(gm, tmp_path / "model.safetensors", dtype="int4", dense_dtype=dense_dtype)
        sizes[dense_dtype] = (tmp_path / "model.safetensors").stat().st_size
    saved = sizes[None] - sizes["bfloat16"]
    others = [tensor for name, tensor in gm.state_dict().items() if "smh_generator" not in name]
    expected = 2 * sum(tensor.numel() for tensor in others if tensor.is_floating_point())
    # But for the compressed description.
    assert saved == pytest.approx(expected, abs=200)
    with torch.device(device):
        model = fxhash.zoo.create("resnet20").eval()
    loaded, images = fxhash.load(tmp_path / "model.safetensors", model), torch.randn(8, 3, 32, 32)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    with torch.no_grad():
        assert torch.corrcoef(torch.stack([loaded(images).flatten(), gm(images).flatten()]))[0, 1] > 0.9


def test_a_dense_part_that_a_narrower_type_can_not_hold(stored):
    gm, path = stored
    before = path.read_bytes()
    with pytest.raises(
        fxhash.PlanError, match=r"dense_dtype='int8' is no type to store all but factors in: give one of"
    ):
        fxhash.save(gm, path, dense_dtype="int8")
    name, bias = next((name, each) for name, each in gm.named_parameters() if "smh_generator" not in name)
    with torch.no_grad():
        bias[0] = 1e6
    with pytest.raises(fxhash.CheckpointError, match=rf"{name}' has values that torch\.float16 can't hold"):
        fxhash.save(gm, path, dense_dtype="float16")
    assert path.read_bytes() == before


def test_narrow_factors_that_cannot_be(stored):
    gm, path = stored
    before = path.read_bytes()
    with pytest.raises(fxhash.PlanError, match=r"dtype=torch\.int16 is no type to store factors in"):
        fxhash.save(gm, path, dtype=torch.int16)
    with torch.no_grad():
        gm.smh_generator.right[0, 0] = 1e6
    with pytest.raises(fxhash.CheckpointError, match=r"right' has values that torch\.float16 can't hold"):
        fxhash.save(gm, path, dtype=torch.float16)
    with torch.no_grad():
        gm.smh_generator.right[0, 0] = torch.nan
    with pytest.raises(fxhash.CheckpointError, match=r"right' has values that torch\.int8 can't hold"):
        fxhash.save(gm, path, dtype=torch.int8, allow_nan=True)
    assert path.read_bytes() == before


def test_a_deployed_model_is_not_saved(tmp_path):
    deployed = fxhash.lower_for_deploy(fxhash.transform(ResidualConvNet(), 0.3))
    with pytest.raises(fxhash.TransformError, match="is lowered already: save the transformed model"):
        fxhash.save(deployed, tmp_path / "model.safetensors")


def test_any_safetensors_reader_can_read_it(stored):
    gm, path = stored
    tensors = load_file(path)
    assert tensors.keys() == gm.state_dict().keys()


def test_loading_into_a_model_without_memory(stored):
    gm, path = stored
    with torch.device("meta"):
        model = ResidualConvNet()
    loaded = fxhash.load(path, model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same_outputs(gm, loaded, torch.randn(2, 3, 6, 6), rtol=0)


class ViewsOfABuffer(nn.Module):
    """Buffers that share memory, and parameters that are single numbers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        whole = torch.rand(32)
        for name, buffer in {"whole": whole, "part": whole[:8], "rows": whole.view(4, 8)}.items():
            self.register_buffer(name, buffer)
        self.zero, self.one = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.linear(x) * self.one + self.zero + self.whole + self.part.sum() + self.rows.sum()


@pytest.mark.parametrize("options", [{}, {"include": ".", "init": "pretrained"}])
def test_buffers_that_share_memory(options, tmp_path):
    model, x = ViewsOfABuffer(), torch.randn(2, 32)
    calibration = {"calibration": [(x,)]} if options else {}
    gm = fxhash.transform(model, 0.9, seed=0, **options, **calibration)
    fxhash.save(gm, tmp_path / "model.safetensors")
    assert_same_outputs(fxhash.load(tmp_path / "model.safetensors", model), gm, x)


@pytest.mark.parametrize("capture", ["trace", "modules"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_was_frozen_is_so_again(device, capture, tmp_path):
    """Whether or not it is in the model that is given."""

    def build():
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32))

    model = build()
    model[0].requires_grad_(False)
    gm = fxhash.transform(model, 0.5, capture=capture, seed=0)
    fxhash.save(gm, tmp_path / "model.safetensors")
    with torch.device(device):
        given = build()
    loaded = fxhash.load(tmp_path / "model.safetensors", given, capture=capture)
    trained = [[each.requires_grad for each in each_model.parameters()] for each_model in (gm, loaded)]
    assert trained[0] == trained[1]
    assert not all(trained[0])
    assert all(each.requires_grad for each in given.parameters())


def test_a_temporary_buffer_without_memory_is_named(tmp_path):
    gm = fxhash.transform(MODELS["Buffers"][0](), 0.9)
    fxhash.save(gm, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = MODELS["Buffers"][0]()
    with pytest.raises(fxhash.CheckpointError, match="has no value on the meta device: build the model on a real"):
        fxhash.load(tmp_path / "model.safetensors", model)


def test_loading_leaves_the_model_untouched(stored):
    _, path = stored
    model = ResidualConvNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fxhash.load(path, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_converted_model_needs_a_converted_model(tmp_path):
    gm = fxhash.transform(ResidualConvNet(), 0.3).bfloat16().eval()
    fxhash.save(gm, tmp_path / "model.safetensors")
    with pytest.raises(fxhash.CheckpointError, match=r"'stem\.weight' is 12x3x3x3 bfloat16 .* 12x3x3x3 float32 in the"):
        fxhash.load(tmp_path / "model.safetensors", ResidualConvNet())
    loaded = fxhash.load(tmp_path / "model.safetensors", ResidualConvNet().bfloat16().eval())
    assert_same_outputs(gm, loaded, torch.randn(2, 3, 6, 6, dtype=torch.bfloat16), rtol=0)


class Wider(ResidualConvNet):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(12, 12, 5, padding=2)


class Deeper(ResidualConvNet):
    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(12, 12)


class Untied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 30, bias=False)


def test_the_first_parameter_that_differs_is_named(stored, tmp_path):
    _, path = stored
    with pytest.raises(
        fxhash.CheckpointError, match=r"'body\.weight' is 12x12x3x3 float32 .* 12x12x5x5 float32 in the"
    ):
        fxhash.load(path, Wider())
    with pytest.raises(fxhash.CheckpointError, match=r"whose parameter 'extra\.weight' is not in the file"):
        fxhash.load(path, Deeper())
    with pytest.raises(fxhash.CheckpointError, match=r"which has no parameter 'stem\.weight'"):
        fxhash.load(path, nn.Linear(3, 3))
    fxhash.save(fxhash.transform(MODELS["TiedEmbedding"][0](), 0.8), tmp_path / "tied.safetensors")
    with pytest.raises(fxhash.CheckpointError, match=r"30x16 float32, tied to head\.weight in the file"):
        fxhash.load(tmp_path / "tied.safetensors", Untied())


def test_buffers_that_differ_are_named(stored):
    _, path = stored

    class MoreBuffers(ResidualConvNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("offset", torch.zeros(10))

        def forward(self, x):
            return super().forward(x) + self.offset

    with pytest.raises(fxhash.CheckpointError, match="lacks the tensor 'offset' that this model needs"):
        fxhash.load(path, MoreBuffers())


def test_transformed_model_as_target(stored):
    gm, path = stored
    with pytest.raises(fxhash.TransformError, match="transformed already"):
        fxhash.load(path, gm)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff" * 100, struct.pack("<Q", 10**15) + b"{}", b"PK\x03\x04" + b"0" * 90]
)
def test_not_a_safetensors_file(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(fxhash.CheckpointError, match="can't be read: it is truncated or no safetensors file"):
        fxhash.load(path, ResidualConvNet())


def test_missing_folder_and_unreadable_paths(tmp_path):
    with pytest.raises(fxhash.CheckpointError, match="does not exist"):
        fxhash.load(tmp_path / "missing.safetensors", ResidualConvNet())
    with pytest.raises(fxhash.CheckpointError, match="can't be read"):
        fxhash.load(tmp_path, ResidualConvNet())
    with pytest.raises(fxhash.CheckpointError, match="can't be written"):
        fxhash.save(fxhash.transform(ResidualConvNet(), 0.3), tmp_path / "missing" / "model.safetensors")


def test_somebody_elses_safetensors(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(fxhash.CheckpointError, match=r"was not written by fxhash\.save"):
        read_plan(tmp_path / "other.safetensors")


@given(data=st.data())
def test_damage_anywhere_gives_one_clear_error(folder, data):
    path = folder / "damaged.safetensors"
    fxhash.save(fxhash.transform(nn.Linear(20, 20), 0.5, seed=0), path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        content = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    else:
        position = data.draw(st.integers(0, len(content) - 1), label="position")
        content[position] ^= data.draw(st.integers(1, 255), label="flip")
    path.write_bytes(content)
    with pytest.raises(fxhash.CheckpointError):
        fxhash.load(path, nn.Linear(20, 20))


def forged(path: Path, changed_plan: str | None = None, **tensors: torch.Tensor) -> None:
    """Rewrite a file with other content and a digest that is right for it, as an attacker would."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["fxhash"])
    stored = {**load_file(path), **tensors}
    plan = metadata["plan"] if changed_plan is None else changed_plan
    save_file(stored, path, {"fxhash": json.dumps({"plan": plan, "sha256": digest(plan, stored)})})


def test_forged_files_are_refused_before_anything_is_built(stored):
    gm, path = stored
    original = path.read_bytes()
    forged(path, **{"smh_generator.right": torch.zeros(3, 3)})
    with pytest.raises(fxhash.CheckpointError, match=r"tensor 'smh_generator\.right' is \(3, 3\) torch\.float32"):
        fxhash.load(path, ResidualConvNet())
    path.write_bytes(original)
    forged(path, unexpected=torch.zeros(3))
    with pytest.raises(fxhash.CheckpointError, match="'unexpected', for which this model has no place"):
        fxhash.load(path, ResidualConvNet())
    path.write_bytes(original)
    forged(path, changed_plan='{"format":1}')
    with pytest.raises(fxhash.CheckpointError, match="holds a plan that can't be used"):
        fxhash.load(path, ResidualConvNet())
    path.write_bytes(original)
    plan = json.loads(gm.smh_generator.plan.to_json())
    plan["layout"]["rank"] = 10**12
    forged(path, changed_plan=json.dumps(plan))
    with pytest.raises(fxhash.CheckpointError, match="rank 1000000000000 is more than"):
        fxhash.load(path, ResidualConvNet())


def test_a_failed_save_leaves_the_old_file(stored, monkeypatch):
    _, path = stored
    before = path.read_bytes()

    def fail(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    other = fxhash.transform(ResidualConvNet(), 0.3, seed=1)
    with pytest.raises(fxhash.CheckpointError, match="can't be written: no space left on device"):
        fxhash.save(other, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_can_not_be_saved(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(fxhash.TransformError, match="this Linear has no generator"):
        fxhash.save(nn.Linear(3, 3), path)
    with torch.device("meta"):
        model = ResidualConvNet()
    with pytest.raises(fxhash.CheckpointError, match="is on the meta device: there are no values to save"):
        fxhash.save(fxhash.transform(model, 0.3), path)


class HoldsExtraState(nn.Module):
    """Adds something to its state dict that is no tensor."""

    def forward(self, x):
        return x

    def get_extra_state(self):
        return {"note": 1}


def test_state_that_is_no_tensor_is_refused(tmp_path):
    gm = fxhash.transform(nn.Sequential(nn.Linear(20, 20), HoldsExtraState()), 0.5)
    with pytest.raises(fxhash.CheckpointError, match=r"'1\._extra_state' in the state dict is a dict, not a tensor"):
        fxhash.save(gm, tmp_path / "model.safetensors")
    assert not any(tmp_path.iterdir())


def rewritten(path, old, new):
    """Replace bytes of a file by as many others."""
    content = path.read_bytes()
    assert len(old) == len(new)
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new))


def test_the_digest_covers_the_plan(stored):
    _, path = stored
    rewritten(path, b":0.3,", b":0.4,")
    with pytest.raises(fxhash.CheckpointError, match="does not have the digest"):
        fxhash.load(path, ResidualConvNet())


def test_the_type_of_each_tensor_is_checked(stored):
    _, path = stored
    forged(path, **{"body.bias": torch.zeros(12, dtype=torch.float64)})
    with pytest.raises(fxhash.CheckpointError, match=r"tensor 'body\.bias' is \(12,\) torch\.float64"):
        fxhash.load(path, ResidualConvNet())


def test_tied_dense_parameters_are_stored_once(tmp_path):
    def build():
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        model[1].bias = model[0].bias
        return model

    gm = fxhash.transform(build(), 0.5, include="weight")
    fxhash.save(gm, tmp_path / "model.safetensors")
    assert len([name for name in load_file(tmp_path / "model.safetensors") if name.endswith("bias")]) == 1
    loaded = fxhash.load(tmp_path / "model.safetensors", build())
    assert_same_outputs(gm, loaded, torch.randn(2, 20), rtol=0)


def test_tied_dense_parameters_stay_tied_where_the_model_has_no_memory(tmp_path):
    def build():
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        model[1].bias = model[0].bias
        return model

    path = tmp_path / "model.safetensors"
    fxhash.save(fxhash.transform(build(), 0.5, include="weight"), path)
    with torch.device("meta"):
        model = build()
    loaded = fxhash.load(path, model)
    biases = {id(parameter) for name, parameter in loaded.named_parameters(remove_duplicate=False) if "bias" in name}
    assert len(biases) == 1
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    fxhash.save(loaded, path)
    assert len([name for name in load_file(path) if name.endswith("bias")]) == 1


def test_more_parameters_than_a_file_may_hold(stored, monkeypatch):
    gm, path = stored
    before = path.read_bytes()
    monkeypatch.setattr("fxhash.smh.plan_json.MOST_PARAMETERS", 4)
    with pytest.raises(fxhash.PlanError, match="the plan has 7 parameters, more than the 4 that a file may hold"):
        fxhash.save(gm, path)
    monkeypatch.undo()
    monkeypatch.setattr("fxhash.storage.model_file._MOST_HEADER_VALUES", 20)
    with pytest.raises(fxhash.CheckpointError, match="this model has too many parameters for a file: its header would"):
        fxhash.save(gm, path)
    assert path.read_bytes() == before


def test_a_plan_whose_parameters_the_model_never_reads(tmp_path):
    class ReadsOne(nn.Module):
        def __init__(self, read):
            super().__init__()
            self.one, self.two, self.read = nn.Linear(20, 20), nn.Linear(20, 20), read

        def forward(self, x):
            return getattr(self, self.read)(x)

    path = tmp_path / "model.safetensors"
    fxhash.save(fxhash.transform(ReadsOne("one"), 0.5), path)
    plan, tensors = opened(path)
    plan["unused"] = []
    plan["parameters"] += [
        {"fqn": "two.weight", "shape": [20, 20], "dtype": "float32", "trainable": False, "dense_because": "x"},
        {"fqn": "two.bias", "shape": [20], "dtype": "float32", "trainable": False, "dense_because": "x"},
    ]
    forge(path, plan, tensors)
    with pytest.raises(fxhash.CheckpointError, match="does not fit this model, whose forward reads none of"):
        fxhash.load(path, ReadsOne("two"))


def test_a_link_stays_a_link(stored, tmp_path):
    gm, path = stored
    link = tmp_path / "latest.safetensors"
    link.symlink_to(path)
    fxhash.save(gm, link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    import os

    current = os.umask(0)
    os.umask(current)
    return current
