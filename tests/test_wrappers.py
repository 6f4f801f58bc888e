"""Models in wrappers of torch, and models that hold transformed ones: each function takes them as a whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import fxhash
from fxhash.storage.reading import read_plan, read_plans
from tests.helpers import assert_same_outputs, smallest_transform
from tests.models import ResidualConvNet
from tests.storage.forgery import forge, opened
from tests.strategies import random_models

image = torch.randn(2, 3, 6, 6)


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch can't use gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_parallel(model):
    return torch.compile(nn.DataParallel(model), backend="eager")


every_wrapper = pytest.mark.parametrize(
    "wrap", [compiled, nn.DataParallel, compiled_in_parallel, DistributedDataParallel, AveragedModel]
)


@every_wrapper
def test_every_function_takes_a_wrapped_model(wrap, request, tmp_path, capsys):
    if wrap is DistributedDataParallel:
        request.getfixturevalue("one_process")
    torch.manual_seed(0)
    dense = ResidualConvNet()
    gm = fxhash.transform(wrap(dense), 0.3, seed=0)
    assert list(gm.state_dict()) == list(fxhash.transform(dense, 0.3).state_dict())
    wrapped, path = wrap(gm), tmp_path / "model.safetensors"
    expected = fxhash.summary(gm)
    assert fxhash.summary(wrapped) == expected
    fxhash.save(gm, path)
    content = path.read_bytes()
    fxhash.save(wrapped, path)
    assert path.read_bytes() == content
    loaded = fxhash.load(path, wrap(ResidualConvNet()))
    assert_same_outputs(gm, loaded, image, rtol=0)
    lowered = fxhash.lower_for_deploy(wrapped)
    assert isinstance(lowered, torch.fx.GraphModule)
    assert_same_outputs(gm.eval(), lowered, image)
    assert fxhash.materialize(wrapped).state_dict().keys() == dense.state_dict().keys()
    assert fxhash.summary(wrap(lowered) if wrap is compiled else lowered).deployment is not None


def test_an_older_file_of_a_compiled_model(tmp_path):
    gm, path = fxhash.transform(ResidualConvNet(), 0.3, seed=0), tmp_path / "model.safetensors"
    fxhash.save(gm, path)
    plan, tensors = opened(path)
    for parameter in plan["parameters"]:
        parameter["fqn"] = f"_orig_mod.{parameter['fqn']}"
    renamed = {name if name.startswith("smh_") else f"_orig_mod.{name}": each for name, each in tensors.items()}
    forge(path, plan, renamed)
    assert_same_outputs(gm, fxhash.load(path, compiled(ResidualConvNet())), image)


def test_what_is_compiled_in_place():
    gm = fxhash.transform(ResidualConvNet(), 0.3, seed=0)
    gm.compile(backend="eager")
    assert_same_outputs(gm.eval(), fxhash.lower_for_deploy(gm), image)


@pytest.mark.parametrize("function", [fxhash.transform, fxhash.summary])
def test_hooks_of_a_wrapper_are_not_lost_in_silence(function):
    wrapped = nn.DataParallel(ResidualConvNet())
    wrapped.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(fxhash.TransformError, match=r"this DataParallel has hooks .* register them on its \.module"):
        function(wrapped)


class Detector(nn.Module):
    """A backbone, a neck that shares nothing with it, and a head with a buffer."""

    def __init__(self):
        super().__init__()
        self.backbone = ResidualConvNet()
        self.neck = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 24))
        self.head = nn.Linear(24, 4)
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x):
        return self.head(self.neck(self.backbone(x).flatten(1))) + self.offset


def detector(*parts):
    torch.manual_seed(0)
    net = Detector()
    for part in parts:
        setattr(net, part, fxhash.transform(getattr(net, part), 0.5, seed=0))
    return net


every_choice = pytest.mark.parametrize("parts", [["backbone"], ["neck"], ["backbone", "neck"]], ids="-".join)


@every_choice
def test_a_model_that_holds_transformed_ones(parts, tmp_path, capsys):
    net, path = detector(*parts), tmp_path / "model.safetensors"
    net(image).sum().backward()
    net.zero_grad()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    result = fxhash.summary(net)
    assert result.trainable_after == sum(parameter.numel() for parameter in net.parameters())
    assert result.trainable_before == sum(parameter.numel() for parameter in Detector().parameters())
    assert result.bytes_before == sum(parameter.nbytes for parameter in Detector().parameters())
    assert [part.path for part in result.parts] == parts
    assert all(f"{part}:\n" in result.table for part in parts)

    fxhash.save(net, path)
    assert list(read_plans(path)) == parts
    with pytest.raises(fxhash.CheckpointError, match="of submodules, not one of a whole model"):
        read_plan(path)
    fresh = Detector()
    untouched = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    loaded = fxhash.load(path, fresh)
    assert type(loaded) is Detector
    assert all(torch.equal(untouched[name], tensor) for name, tensor in fresh.state_dict().items())
    assert loaded.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert_same_outputs(net, loaded, image, rtol=0)

    net.eval()
    for lowered in (
        fxhash.lower_for_deploy(net),
        fxhash.lower_for_deploy(net, example_inputs=(image,)),
        fxhash.lower_for_deploy(nn.DataParallel(net), memory_budget="1MB"),
    ):
        assert type(lowered) is Detector
        assert not any(parameter.requires_grad for parameter in lowered.parameters())
        assert_same_outputs(net, lowered, image)
        assert fxhash.summary(lowered).trainable_after == result.trainable_after
        with pytest.raises(fxhash.TransformError, match="is lowered already: save the transformed model"):
            fxhash.save(lowered, path)
    dense = fxhash.materialize(net)
    assert dense.state_dict().keys() == Detector().state_dict().keys()
    assert_same_outputs(net, dense.eval(), image)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@every_choice
def test_loading_where_nothing_has_memory(parts, tmp_path):
    net, path = detector(*parts), tmp_path / "model.safetensors"
    fxhash.save(net, path, dtype=torch.int8)
    with torch.device("meta"):
        model = Detector()
    loaded = fxhash.load(path, model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same_outputs(fxhash.load(path, Detector()), loaded, image, rtol=0)


@given(case=random_models())
def test_any_submodule_saved_as_a_part_is_as_it_was(tmp_path_factory, case):
    model, x = case
    path = tmp_path_factory.getbasetemp() / "part.safetensors"
    net = nn.Sequential(smallest_transform(model, 0.5, seed=0), nn.Flatten())
    fxhash.save(net, path)
    loaded = fxhash.load(path, nn.Sequential(model, nn.Flatten()))
    assert_same_outputs(net, loaded, x, rtol=0)
    assert_same_outputs(net.eval(), fxhash.lower_for_deploy(loaded), x)


def test_one_budget_for_all_parts():
    net = detector("backbone", "neck").eval()

    def peak(lowered):
        return sum(part.deployment.peak_bytes for part in fxhash.summary(lowered).parts)

    methods = {r"^backbone\.": "generate", r"^neck\.": "generate"}
    least = peak(fxhash.lower_for_deploy(net, methods=methods))
    with pytest.raises(fxhash.MemoryBudgetError) as caught:
        fxhash.lower_for_deploy(net, methods=methods, memory_budget=least - 1)
    assert caught.value.smallest_budget == least
    for budget in (max(peak(fxhash.lower_for_deploy(net)), 1), 10_000, 10**6):
        lowered = fxhash.lower_for_deploy(net, memory_budget=budget)
        assert peak(lowered) <= budget
        assert_same_outputs(net, lowered, image)
    lowered = fxhash.lower_for_deploy(net, methods={r"^neck\.2\.weight": "cache"})
    backbone, neck = fxhash.summary(lowered).parts
    assert backbone.deployment.cached_bytes == 0
    assert neck.deployment.cached_bytes == 4 * 24 * 24


def test_a_submodule_that_is_held_twice_is_lowered_once(tmp_path):
    shared = fxhash.transform(nn.Linear(20, 20), 0.5, seed=0)
    net = nn.Sequential(shared, nn.ReLU(), shared).eval()
    lowered = fxhash.lower_for_deploy(net)
    assert lowered[0] is lowered[2]
    assert_same_outputs(net, lowered, torch.randn(3, 20))
    fxhash.save(net, tmp_path / "shared.safetensors")
    dense = nn.Linear(20, 20)
    loaded = fxhash.load(tmp_path / "shared.safetensors", nn.Sequential(dense, nn.ReLU(), dense).eval())
    assert loaded[0] is loaded[2]
    assert_same_outputs(net, loaded, torch.randn(3, 20), rtol=0)


def test_a_wrapper_inside_of_a_model_is_named():
    net = detector()
    net.backbone = compiled(fxhash.transform(net.backbone, 0.5))
    with pytest.raises(fxhash.TransformError, match="backbone is a OptimizedModule around a transformed model: wrap"):
        fxhash.lower_for_deploy(net)


def test_files_of_submodules_that_do_not_fit(tmp_path):
    path = tmp_path / "model.safetensors"
    fxhash.save(detector("neck"), path)
    with pytest.raises(fxhash.CheckpointError, match="does not fit this model, which has no submodule 'neck'"):
        fxhash.load(path, ResidualConvNet())
    with pytest.raises(fxhash.CheckpointError, match="example_inputs check a whole model"):
        fxhash.load(path, Detector(), example_inputs=(image,))
    other = Detector()
    other.head = nn.Linear(24, 5)
    with pytest.raises(fxhash.CheckpointError, match=r"tensor 'head\.bias' is \(4,\)"):
        fxhash.load(path, other)
    net = detector("neck")
    with torch.no_grad():
        net.head.bias[0] = torch.inf
    with pytest.raises(fxhash.CheckpointError, match=r"'head\.bias' holds infinity, so nothing is written"):
        fxhash.save(net, path)
    fxhash.save(net, path, allow_nan=True)
    with pytest.raises(fxhash.CheckpointError, match=r"'head\.bias' holds infinity"):
        fxhash.load(path, Detector())
