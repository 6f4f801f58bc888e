"""Models exported to ONNX and run in ONNX Runtime: equal outputs, and files that hold factors instead of weights."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.torch_version import TorchVersion

import fxhash
from tests.helpers import (
    every_form,
    in_form,
    may_be_opaque,
    run,
    skip_unless_onnx_has_factored_attention,
    skip_unless_onnx_has_open_sizes,
)
from tests.lowering.test_lowered_models import perturb, transformed

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnx_ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

torchvision = pytest.importorskip("torchvision")

# Torch itself calls what it deprecates while it exports recurrent layers.
pytestmark = [may_be_opaque, pytest.mark.filterwarnings("ignore:_check_is_size will be removed:FutureWarning")]

# ONNX Runtime multiplies constants when it loads a model, factors too, unless it is told not to: by an argument of a
# session in Python, or by an entry of its options, which every language has.
FACTORS_STAY = {"disabled_optimizers": ["ConstantFolding"]}
FACTORS_STAY_BY_ENTRY = {"entries": {"optimization.disable_specified_optimizers": "ConstantFolding"}}


def export_with_options(model, inputs, path, external_data=False, optimize=False):
    """What `fxhash.export_onnx` does, with other options of the exporter."""
    with torch.no_grad():
        program = torch.onnx.export(model, inputs, dynamo=True, optimize=optimize, verbose=False)
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.save(path, external_data=external_data)


def load(path, optimized=None, entries=None, **options):
    """A session of ONNX Runtime; the graph that it really runs goes to the file `optimized`."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    # Without its note that an optimised graph is for this machine alone.
    settings.log_severity_level = 3
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    for key, value in (entries or {}).items():
        settings.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"], **options)


def assert_runs_as(model, session, inputs):
    expected = run(model, *inputs)
    named = {node.name: value.numpy() for node, value in zip(session.get_inputs(), inputs, strict=True)}
    for got, tensor in zip(session.run(None, named), expected, strict=True):
        largest = tensor.abs().max().item()
        torch.testing.assert_close(torch.from_numpy(got), tensor, rtol=1e-4, atol=1e-4 * largest)


def bytes_of(tensors):
    """Bytes of tensors, each counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(tensor): tensor for tensor in tensors}.values())


def factor_bytes(model):
    return bytes_of([*model.parameters(), *model.buffers()])


def dense_bytes(gm):
    """Bytes of the weights that a transformed model generates."""
    return sum(4 * parameter.numel for parameter in gm.smh_generator.plan.hashed)


def constant_bytes(path):
    """Bytes of all tensors that an ONNX file holds."""
    graph = onnx.load(path).graph
    stored = list(graph.initializer)
    stored += [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in stored)


def skip_what_torch_2_6_cannot_export(model):
    """Skip a test, with the reason, if it asks what the ONNX exporter of torch 2.6 can't do."""
    if TorchVersion(torch.__version__) >= "2.7":
        return
    called = [model.get_submodule(node.target) for node in model.graph.nodes if node.op == "call_module"]
    if any(isinstance(module, nn.BatchNorm2d) for module in called):
        pytest.skip("torch 2.6 exports no batch norm with this onnxscript, of the dense model neither")
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        pytest.skip("torch 2.6 warns of recurrent layers that they are no submodules: they run on a replica")


def wide():
    """A perceptron of 4.5 MB of weights, made of 0.2 MB of factors, and an input."""
    dense = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 16))
    return fxhash.transform(dense, 0.05, seed=0).eval(), (torch.randn(4, 64),)


@every_form
@pytest.mark.parametrize(
    "name",
    ["ResidualConvNet", "ConvTranspose2d", "Attention", "TransformerEncoderLayer", "TiedEmbedding", "LSTM", "GRU"],
)
def test_same_outputs(name, form, tmp_path):
    gm, inputs = transformed(name)
    model = in_form(form, gm)
    skip_what_torch_2_6_cannot_export(model)
    fxhash.export_onnx(model, inputs, tmp_path / "model.onnx")
    assert_runs_as(model, load(tmp_path / "model.onnx"), inputs)
    assert_runs_as(model, load(tmp_path / "model.onnx", **FACTORS_STAY), inputs)


@every_form
@pytest.mark.parametrize("name", ["ResidualConvNet", "TransformerEncoderLayer"])
def test_same_outputs_with_the_exporters_own_optimizer(name, form, tmp_path):
    gm, inputs = transformed(name)
    model = in_form(form, gm)
    skip_what_torch_2_6_cannot_export(model)
    export_with_options(model, inputs, tmp_path / "model.onnx", optimize=True)
    assert_runs_as(model, load(tmp_path / "model.onnx"), inputs)


@every_form
@pytest.mark.parametrize("name", ["ResidualConvNet", "TransformerEncoderLayer", "TiedEmbedding", "LSTM"])
def test_any_batch(name, form, tmp_path):
    gm, inputs = transformed(name)
    model = in_form(form, gm)
    skip_unless_onnx_has_open_sizes()
    fxhash.export_onnx(model, inputs, tmp_path / "model.onnx", dynamic_shapes=({0: torch.export.Dim("batch")},))
    session = load(tmp_path / "model.onnx")
    for batch in (1, 2, 70):
        assert_runs_as(model, session, tuple(torch.cat([value] * batch)[:batch] for value in inputs))


@every_form
@pytest.mark.parametrize("name", ["resnet18", pytest.param("vit_b_16", marks=pytest.mark.slow)])
def test_file_holds_the_factors_of_a_large_model(name, form, tmp_path):
    gm = fxhash.transform(torchvision.models.get_model(name), 0.1, seed=0).eval()
    # The head of a new vision transformer is all zeros.
    perturb(gm)
    inputs = (torch.randn(1, 3, 224, 224),)
    model = in_form(form, gm)
    skip_what_torch_2_6_cannot_export(model)
    path = tmp_path / "model.onnx"
    fxhash.export_onnx(model, inputs, path)
    size = path.stat().st_size
    assert size <= 1.05 * factor_bytes(gm) + 2**18 < dense_bytes(gm) / 4
    assert constant_bytes(path) <= size
    assert_runs_as(model, load(path, **FACTORS_STAY), inputs)


@every_form
def test_external_data_holds_the_factors(form, tmp_path):
    gm, inputs = wide()
    model = in_form(form, gm)
    export_with_options(model, inputs, tmp_path / "model.onnx", external_data=True)
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) <= 1.05 * factor_bytes(gm) + 2**18 < dense_bytes(gm) / 8
    assert_runs_as(model, load(tmp_path / "model.onnx"), inputs)


@every_form
@pytest.mark.parametrize("options", [FACTORS_STAY, FACTORS_STAY_BY_ENTRY], ids=["by argument", "by entry"])
def test_a_session_that_keeps_the_factors(options, form, tmp_path):
    gm, inputs = wide()
    model = in_form(form, gm)
    fxhash.export_onnx(model, inputs, tmp_path / "model.onnx")
    session = load(tmp_path / "model.onnx", tmp_path / "optimized.onnx", **options)
    assert constant_bytes(tmp_path / "optimized.onnx") <= 1.05 * factor_bytes(gm)
    assert_runs_as(model, session, inputs)


def test_a_session_by_default_builds_the_weights_of_a_transformed_model_once(tmp_path):
    gm, inputs = wide()
    fxhash.export_onnx(gm, inputs, tmp_path / "model.onnx")
    session = load(tmp_path / "model.onnx", tmp_path / "optimized.onnx")
    assert constant_bytes(tmp_path / "optimized.onnx") >= dense_bytes(gm)
    assert_runs_as(gm, session, inputs)


def test_a_session_by_default_keeps_layers_that_multiply_in_turn_small(tmp_path):
    gm, inputs = wide()
    deployed = fxhash.lower_for_deploy(gm, methods={".": "factored"})
    fxhash.export_onnx(deployed, inputs, tmp_path / "model.onnx")
    session = load(tmp_path / "model.onnx", tmp_path / "optimized.onnx")
    # Each layer may have its own copy of `right`, in the order that it needs.
    copies = 3 * bytes_of([gm.smh_generator.right])
    assert constant_bytes(tmp_path / "optimized.onnx") <= 1.05 * factor_bytes(gm) + copies < dense_bytes(gm) / 8
    assert_runs_as(deployed, session, inputs)


def test_a_session_by_default_builds_weights_that_are_to_be_generated(tmp_path):
    gm, inputs = wide()
    deployed = fxhash.lower_for_deploy(gm, methods={r"^2\.": "generate"})
    fxhash.export_onnx(deployed, inputs, tmp_path / "model.onnx")
    load(tmp_path / "model.onnx", tmp_path / "default.onnx")
    load(tmp_path / "model.onnx", tmp_path / "small.onnx", **FACTORS_STAY)
    assert constant_bytes(tmp_path / "default.onnx") >= 4 * 1024 * 1024
    assert constant_bytes(tmp_path / "small.onnx") <= 1.05 * factor_bytes(gm)


def test_the_mode_is_as_before_and_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    gm, inputs = transformed("ConvTranspose2d")
    gm.train()
    with pytest.raises(fxhash.CheckpointError, match="can't be written"):
        fxhash.export_onnx(gm, inputs, tmp_path / "nowhere" / "model.onnx")
    assert all(module.training for module in gm.modules())
    fxhash.export_onnx(gm, inputs, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert_runs_as(gm.eval(), load(tmp_path / "model.onnx"), inputs)


def test_what_the_exporter_cannot_take_is_said(tmp_path, capfd):
    """In one line: torch's log, and the graph that it prints, would be pages."""
    gm, inputs = transformed("BranchesOnInput")
    capfd.readouterr()
    with pytest.raises(fxhash.TransformError, match=r"torch\.onnx\.export can't take this BranchesOnInput"):
        fxhash.export_onnx(gm, inputs, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


class DecomposesItsOutput(nn.Module):
    """It calls what ONNX has no operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(self.fc(x))[0]


@pytest.mark.parametrize(
    ("inputs", "name", "message"),
    [
        (
            (torch.zeros(2, 65),),
            "model.onnx",
            r"this \w+ can't be called with inputs=\(float32 2x65,\): InputError: layer 'fc' takes inputs of shape "
            r"\(\.\.\., 64\), got shape \(2, 65\)\. Give arguments that its forward takes$",
        ),
        ((), "model.onnx", r"can't be called with inputs=\(\): TypeError: .*missing 1 required positional argument"),
        (
            torch.zeros(2, 64),
            "model.onnx",
            r"inputs is a tensor: give a tuple of example arguments, \(x,\) for a single",
        ),
        (
            (torch.zeros(2, 64),),
            "model.pt",
            r"path=.* is named as a .* but a \.onnx file .* give 'model\.onnx'$",
        ),
        (
            (torch.zeros(2, 64),),
            "model.onnx",
            r"^torch\.onnx\.export can't take this \w+ with these arguments: \w+: .*svd.* Write that part of the",
        ),
    ],
)
def test_wrong_steps_are_answered_by_the_right_one(inputs, name, message, tmp_path, capfd):
    gm = fxhash.lower_for_deploy(fxhash.transform(DecomposesItsOutput(), 0.5, seed=0))
    with pytest.raises(fxhash.FxhashError, match=message) as caught:
        fxhash.export_onnx(gm, inputs, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert type(caught.value) in (fxhash.TransformError, fxhash.CheckpointError)
    assert "\x1b" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def operators(path):
    """What the nodes of an ONNX file are, and how many of each."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


class ConvolutionsWithNorms(nn.Module):
    """Separable convolutions of few and of many channels, regular ones, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 256, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(256) for _ in range(3))

    def forward(self, x):
        x = torch.relu(self.norms[0](self.stem(x)))
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            x = torch.relu(norm(conv(x)) + x)
        return x


@every_form
@pytest.mark.parametrize("separable", [True, False])
def test_a_session_runs_nothing_but_convolutions(separable, form, tmp_path):
    """No bias of zeros, no batch norm, nothing that reshapes or reorders activations between convolutions."""
    torch.manual_seed(0)
    dense = ConvolutionsWithNorms()
    for norm in dense.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    gm = fxhash.transform(dense, 0.1, separable=separable, seed=0).eval()
    model, inputs = in_form(form, gm), (torch.randn(1, 3, 8, 8),)
    skip_what_torch_2_6_cannot_export(model)
    if form == "lowered":
        assert {str(use.method) for use in model.smh_factors.plan.uses} >= {"factored"}
    fxhash.export_onnx(model, inputs, tmp_path / "model.onnx")
    session = load(tmp_path / "model.onnx", tmp_path / "optimized.onnx")
    assert set(operators(tmp_path / "optimized.onnx")) <= {"Conv", "ReorderInput", "ReorderOutput", "Concat"}
    assert operators(tmp_path / "optimized.onnx")["ReorderOutput"] <= 1
    assert_runs_as(model, session, inputs)


@pytest.mark.parametrize("name", ["alone", "with masks", "in a layer"])
def test_attention_applies_the_factors(name, tmp_path):
    """No weight of an attention that is factored is generated, not even when ONNX Runtime folds constants."""
    skip_unless_onnx_has_factored_attention()
    dense, inputs = ATTENTIONS[name]().eval(), (torch.randn(2, 6, 256),)
    gm = fxhash.transform(dense, 0.05, seed=0).eval()
    model = fxhash.lower_for_deploy(gm)
    assert {str(use.method) for use in model.smh_factors.plan.uses} == {"factored"}
    fxhash.export_onnx(model, inputs, tmp_path / "model.onnx")
    session = load(tmp_path / "model.onnx", tmp_path / "optimized.onnx")
    assert constant_bytes(tmp_path / "optimized.onnx") < dense_bytes(gm) / 2
    assert_runs_as(model, session, inputs)


class WideAttention(nn.Module):
    """Attention whose factors are much smaller than its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(256, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class MaskedAttention(WideAttention):
    """To what came before, padding left out."""

    def forward(self, x):
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        padding = F.pad(x[:, 1:, 0] > 0.5, (1, 0))
        return self.attention(x, x, x, key_padding_mask=padding, attn_mask=later, need_weights=False)[0]


ATTENTIONS = {
    "alone": WideAttention,
    "with masks": MaskedAttention,
    "in a layer": lambda: nn.TransformerEncoderLayer(256, 4, 512, batch_first=True),
}


def test_threads_that_export_at_once_leave_stderr_as_it_was(tmp_path):
    gm, inputs = transformed("ResidualConvNet")
    models = [fxhash.lower_for_deploy(gm) for _ in range(2)]
    skip_what_torch_2_6_cannot_export(models[0])
    stream = sys.stderr
    with ThreadPoolExecutor(2) as pool:
        paths = [tmp_path / f"{index}.onnx" for index in range(2)]
        list(pool.map(lambda model, path: fxhash.export_onnx(model, inputs, path), models, paths))
    assert sys.stderr is stream
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_a_layer_whose_weight_would_not_be_in_the_file_is_refused(dtype, tmp_path):
    gm, inputs = transformed("ResidualConvNet")
    hashed = gm.smh_generator.plan.hashed[0].fqn.rpartition(".")[0]
    gm.add_submodule(hashed, nn.Conv2d(4, 4, 1))
    with pytest.raises(fxhash.TransformError, match="was put into this transformed model"):
        fxhash.export_onnx(gm, inputs, tmp_path / "model.onnx", dtype=dtype)
    assert not any(tmp_path.iterdir())


def test_a_model_that_holds_a_lowered_one_is_as_before(tmp_path):
    gm, inputs = transformed("ResidualConvNet")
    lowered = fxhash.lower_for_deploy(gm)
    skip_what_torch_2_6_cannot_export(lowered)
    model = nn.Sequential(lowered, nn.Identity())
    fxhash.export_onnx(model, inputs, tmp_path / "model.onnx")
    assert model[0] is lowered
    assert_runs_as(model, load(tmp_path / "model.onnx"), inputs)
