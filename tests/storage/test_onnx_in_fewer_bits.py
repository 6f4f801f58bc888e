"""ONNX files with factors in 8 or 4 bits or in float16: the numbers of a saved model, in as few bytes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxhash
from fxhash import zoo
from fxhash.lowering.factor_store import StoredRows
from fxhash.smh.factor_bits import FactorBits, dequantize, quantize
from fxhash.storage.onnx_bits import _Widening
from tests.helpers import may_be_opaque, run
from tests.lowering.test_lowered_models import MODELS, transformed
from tests.storage.test_onnx import FACTORS_STAY, load, operators, skip_what_torch_2_6_cannot_export

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = [may_be_opaque, pytest.mark.filterwarnings("ignore:_check_is_size will be removed:FutureWarning")]

DTYPES = ("int8", "int4", "float16")
# Sums of float32, beside which roundings to even 16 bits are large.
SUMS = 1e-5


def outputs(path, inputs, **options):
    session = load(path, **options)
    named = {node.name: value.numpy() for node, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(each) for each in session.run(None, named)]


def distance(results, expected):
    """The largest difference over the largest output."""
    pairs = list(zip(results, expected, strict=True))
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def saved_and_loaded(gm, dense, dtype, folder):
    fxhash.save(gm, folder / "saved.safetensors", dtype=dtype)
    return fxhash.lower_for_deploy(fxhash.load(folder / "saved.safetensors", dense).eval())


def assert_numbers(model, inputs, dtype, expected, folder):
    """Both kinds of session give what the model that was saved and loaded gives."""
    path = folder / "model.onnx"
    fxhash.export_onnx(model, inputs, path, dtype=dtype)
    onnx.checker.check_model(onnx.load(path))
    for options in ({}, FACTORS_STAY):
        assert distance(outputs(path, inputs, **options), run(expected, *inputs)) < SUMS
    return path


def cases(names, quick):
    """Each name with each type; slow but for a few."""
    every = [(name, dtype) for name in names for dtype in DTYPES]
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in every]


@pytest.mark.parametrize(
    ("name", "dtype"),
    cases(("ResidualConvNet", "TransformerEncoderLayer", "LSTM"), {("ResidualConvNet", "int8"), ("LSTM", "float16")}),
)
def test_numbers_are_those_of_a_saved_model(name, dtype, tmp_path):
    gm, inputs = transformed(name)
    skip_what_torch_2_6_cannot_export(gm)
    gm.train()
    expected = saved_and_loaded(gm, MODELS[name][0](), dtype, tmp_path)
    exact = run(fxhash.lower_for_deploy(gm), *inputs)
    assert distance(run(expected, *inputs), exact) > 2 * SUMS, "the test can't tell rounded from exact factors"
    state = {key: value.clone() for key, value in gm.state_dict().items()}
    assert_numbers(gm, inputs, dtype, expected, tmp_path)
    assert gm.training
    assert all(torch.equal(value, state[key]) for key, value in gm.state_dict().items())


@pytest.mark.parametrize(
    ("name", "dtype"), cases(("SeparableConvolutions", "TiedEmbedding"), {("SeparableConvolutions", "int4")})
)
def test_numbers_of_a_lowered_model(name, dtype, tmp_path):
    """Rows of `left` are stored times scales, batch norms and powers of two, of which the rounding knows nothing."""
    gm, inputs = transformed(name)
    skip_what_torch_2_6_cannot_export(gm)
    expected = saved_and_loaded(gm, MODELS[name][0](), dtype, tmp_path)
    lowered = fxhash.lower_for_deploy(gm, device=fxhash.DeviceProfile.onnx_runtime())
    assert_numbers(lowered, inputs, dtype, expected, tmp_path)


def wide(group=None, bits=4):
    """A perceptron that was trained in few bits, and its input."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    gm = fxhash.transform(dense, 0.2, seed=0).eval()
    return fxhash.quantize_factors(gm, bits, group=group), (torch.randn(3, 64),)


@pytest.mark.parametrize(
    ("weights", "group"),
    [(None, 7), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((None, None), ("int8", None), ("int8", 7)))],
)
def test_a_model_trained_in_4_bits_has_the_values_that_it_was_trained_with(weights, group, tmp_path):
    quantized, inputs = wide(group)
    path = assert_numbers(quantized, inputs, "int4", quantized, tmp_path)
    lowered = fxhash.lower_for_deploy(quantized, weights=weights)
    assert_numbers(lowered, inputs, "int4", quantized, tmp_path)
    kinds = [tensor.data_type for tensor in onnx.load(path).graph.initializer]
    # Three layers' rows of `left`, and `right`.
    assert (kinds.count(onnx.TensorProto.INT4), kinds.count(onnx.TensorProto.INT8)) == (3, 1)


def test_a_model_lowered_in_8_bits(tmp_path):
    quantized, inputs = wide(bits=8)
    lowered = fxhash.lower_for_deploy(quantized, weights="int8")
    assert_numbers(lowered, inputs, "int8", quantized, tmp_path)


@pytest.mark.parametrize("of_model", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_models_of_other_types(dtype, of_model, tmp_path):
    """What is widened has the model's type; no session takes models in bfloat16 on a CPU, so that these are checked."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).to(getattr(torch, of_model))
    gm = fxhash.lower_for_deploy(fxhash.transform(model, 0.3, seed=0))
    inputs, path = (torch.randn(2, 64, dtype=getattr(torch, of_model)),), tmp_path / "model.onnx"
    fxhash.export_onnx(gm, inputs, path, dtype=dtype)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    if of_model != "bfloat16":
        assert distance(outputs(path, inputs), run(gm, *inputs)) < {"float16": 2e-3, "int8": 0.05, "int4": 0.5}[dtype]


@pytest.mark.parametrize("dtype", ["int8", *(pytest.param(each, marks=pytest.mark.slow) for each in DTYPES[1:])])
def test_a_session_is_that_of_a_file_in_float32(dtype, tmp_path):
    """What widens factors is computed when the file is loaded, and no product becomes one of integers."""
    dense = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    gm, inputs, graphs = fxhash.transform(dense, 0.2, seed=0).eval(), (torch.randn(3, 64),), {}
    for each in (None, dtype):
        model = fxhash.lower_for_deploy(gm, device=fxhash.DeviceProfile.onnx_runtime())
        fxhash.export_onnx(model, inputs, tmp_path / "model.onnx", dtype=each)
        load(tmp_path / "model.onnx", tmp_path / "optimized.onnx")
        graphs[each] = operators(tmp_path / "optimized.onnx")
    assert graphs[dtype] == graphs[None]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_as_small_as_a_saved_model(dtype, tmp_path):
    gm = fxhash.transform(zoo.create("resnet20"), 0.1, seed=0).eval()
    skip_what_torch_2_6_cannot_export(gm)
    fxhash.save(gm, tmp_path / "model.safetensors", dtype=dtype)
    fxhash.export_onnx(gm, (torch.randn(1, 3, 32, 32),), tmp_path / "model.onnx", dtype=dtype)
    assert (tmp_path / "model.onnx").stat().st_size <= 1.1 * (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "dtype", ["int9", "float32", "bfloat16", "", 8, 4.0, b"int8", torch.int32, torch.float64, object(), ["int8"], True]
)
def test_other_types_are_refused(dtype, tmp_path):
    quantized, inputs = wide(bits=8)
    with pytest.raises(fxhash.PlanError, match=r"is no type to store factors in an ONNX file in: give one of torch"):
        fxhash.export_onnx(quantized, inputs, tmp_path / "model.onnx", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_stored_is_refused(tmp_path):
    quantized, inputs = wide(bits=8)
    gm = fxhash.transform(nn.Linear(64, 64), 0.5, seed=0).eval()
    broken = fxhash.transform(nn.Linear(64, 64), 0.5, seed=0).eval()
    large = fxhash.transform(nn.Linear(64, 64), 0.5, seed=0).eval()
    with torch.no_grad():
        broken.smh_generator.left[0][0, 0] = math.nan
        large.smh_generator.right[0, 0] = 1e6
    lowered = fxhash.lower_for_deploy(large)
    for model, dtype, error, message in (
        (nn.Linear(64, 64), "int8", fxhash.TransformError, r"this Linear has no factors to store in torch\.int8: omit"),
        (quantized, "int4", fxhash.PlanError, r'factors that have 8 bits: export them with dtype="int8", or without'),
        (quantized, "float16", fxhash.PlanError, r"would round factors that have 8 bits"),
        (fxhash.lower_for_deploy(gm, weights="int8"), "int4", fxhash.PlanError, r"factors that have 8 bits"),
        (broken, "int8", fxhash.CheckpointError, r"a factor has values that torch\.int8 can't hold: export without"),
        (large, "float16", fxhash.CheckpointError, r"a factor has values that torch\.float16 can't hold"),
        (lowered, "float16", fxhash.CheckpointError, r"a factor has values that torch\.float16 can't hold"),
    ):
        with pytest.raises(error, match=message):
            fxhash.export_onnx(model, inputs, tmp_path / "model.onnx", dtype=dtype)
        assert not list(tmp_path.iterdir())


@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from([FactorBits(8), FactorBits(4), FactorBits(4, 3), FactorBits(8, 16)]),
    st.sampled_from(["one", "scalar", "rows"]),
    st.integers(0, 2**31),
)
def test_widened_rows_are_those_that_were_rounded(count, entries, bits, kind, seed):
    """Whatever the sizes: what a runtime makes of integers and steps is what `load` makes of them."""
    generator = torch.Generator().manual_seed(seed)
    integers, steps = quantize(torch.randn(count, entries, generator=generator), bits)
    rows = dequantize(integers, steps, bits)
    scale = {"one": torch.ones(1, 1), "scalar": torch.full((1, 1), 0.3), "rows": torch.rand(count, 1) - 0.5}[kind]
    widening = _Widening("rows", onnx.TensorProto.FLOAT)
    widening.quantize(StoredRows(rows * scale, scale, "left"), bits)
    output = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [count, entries])
    nodes = [*widening.nodes, onnx.helper.make_node("Identity", ["rows"], ["out"])]
    graph = onnx.helper.make_graph(nodes, "graph", [], [output], widening.initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    (got,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    torch.testing.assert_close(torch.from_numpy(got), rows * scale, rtol=1e-6, atol=0)
