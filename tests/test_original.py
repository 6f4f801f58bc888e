"""What a transformed model passes on of the original: right, or refused with a reason."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fxhash
from tests.helpers import assert_same_outputs
from tests.models import MODELS


class Net(nn.Module):
    """As models of timm and Hugging Face are: a configuration, features apart from the head, a loop that calls it."""

    main_input_name = "x"

    def __init__(self, num_classes=6, width=24):
        super().__init__()
        self.config = SimpleNamespace(width=width, num_classes=num_classes)
        self.num_classes = num_classes
        self.default_cfg = {"input_size": (3, 8, 8), "mean": [0.5]}
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.forward_features(x))

    def forward_features(self, x):
        return torch.relu(self.body(x))

    def input_size(self, batch=1):
        return (batch, *self.default_cfg["input_size"][1:]) if self.has_sizes() else None

    def has_sizes(self):
        return hasattr(self, "default_cfg") and not hasattr(self, "sizes")

    @property
    def classes(self):
        return [f"class {n}" for n in range(self.num_classes)]

    @property
    def device(self):
        return next(self.parameters()).device

    @classmethod
    def build(cls, **arguments):
        return cls(**arguments)

    @staticmethod
    def twice(x):
        return 2 * x

    def best(self, x, steps):
        for _ in range(steps):
            x = x + self(x).mean() + self.forward(x).max()
        return x, self.training

    def reset_classifier(self, num_classes):
        self.head = nn.Linear(24, num_classes)

    def set_width(self, width):
        self.width = width

    def get_classifier(self):
        return self.head

    def init_weights(self):
        for parameter in self.parameters():
            parameter.data.zero_()

    def itself(self):
        return self


x = torch.randn(3, 24)


def copies(gm):
    """The model, and what copying, storing, lowering and loading makes of it."""
    return [gm, copy.deepcopy(gm), pickle.loads(pickle.dumps(gm)), fxhash.lower_for_deploy(gm)]


@pytest.fixture(params=["trace", "modules"])
def transformed(request):
    torch.manual_seed(0)
    return fxhash.transform(Net(), 0.5, seed=0, capture=request.param)


def test_attributes_that_hold_no_weight(transformed):
    for gm in copies(transformed):
        assert gm.num_classes == 6
        assert gm.config.width == 24
        assert gm.default_cfg == {"input_size": (3, 8, 8), "mean": [0.5]}
        assert gm.main_input_name == "x"
        assert gm.classes[-1] == "class 5"
        assert gm.build(num_classes=3).num_classes == 3
        assert gm.twice(4) == 8
        assert not hasattr(gm, "missing")
        gm.num_classes = 7
        assert gm.num_classes == 7
    original = Net()
    gm = fxhash.transform(original, 0.5)
    assert gm.config is not original.config
    gm.default_cfg["mean"] = []
    assert original.default_cfg["mean"] == [0.5]


def test_methods_that_need_no_layers(transformed):
    for gm in copies(transformed):
        assert gm.input_size(batch=2) == (2, 8, 8)
        assert gm.itself() is gm
        torch.testing.assert_close(gm.best(x, 2)[0], Net.best(gm, x, 2)[0])
        assert gm.eval().best(x, 1)[1] is False


def test_methods_that_need_layers_say_so_where_there_are_none():
    for gm in copies(fxhash.transform(Net(), 0.5)):
        for call in (lambda gm=gm: gm.forward_features(x), gm.init_weights):
            with pytest.raises(fxhash.TransformError, match=r"needs the layers of the model \(it reads '"):
                call()
        for call in (lambda gm=gm: gm.reset_classifier(3), lambda gm=gm: gm.set_width(3)):
            with pytest.raises(fxhash.TransformError, match=r"changes '.*', which a traced model would not follow"):
                call()
        assert not hasattr(gm, "device")


def test_any_method_works_where_the_model_is_called_as_a_whole():
    transformed = fxhash.transform(Net(), 0.5, seed=0, capture="modules")
    dense = fxhash.materialize(transformed)
    for gm in copies(transformed):
        torch.testing.assert_close(gm.forward_features(x), dense.forward_features(x))
        assert gm.device == torch.device("cpu")
        assert_same_outputs(transformed.eval(), gm.eval(), x)
    transformed.forward_features(x).sum().backward()
    assert transformed.smh_generator.right.grad.any()


class ReachedOtherwise(Net):
    def __init__(self):
        super().__init__()
        self.layers = [self.body]
        self.unit = lambda: 3


def test_layers_that_are_reached_by_more_than_their_parents():
    traced, whole = (fxhash.transform(ReachedOtherwise(), 0.5, capture=capture) for capture in ("trace", "modules"))
    for gm in (traced, whole):
        assert not hasattr(gm, "layers")
        assert gm.unit() == 3
    assert pickle.loads(pickle.dumps(traced)).num_classes == 6
    with pytest.raises(fxhash.TransformError, match="are reached by more than their parents: call it on"):
        whole.forward_features(x)
    assert fxhash.materialize(whole).forward_features(x).shape == (3, 24)


def test_methods_that_change_weights_are_refused():
    gm = fxhash.transform(Net(), 0.5, seed=0, capture="modules").eval()
    before = gm(x)
    lowered = fxhash.lower_for_deploy(gm)
    with pytest.raises(fxhash.TransformError, match="changes layers or weights"):
        lowered.reset_classifier(6)
    torch.testing.assert_close(lowered(x), before)
    for call in (gm.init_weights, lambda: gm.reset_classifier(6)):
        with pytest.raises(fxhash.TransformError, match="changes layers or weights"):
            call()
        assert torch.equal(gm(x), before)


class ChangesOneWeight(nn.Module):
    """In ways that leave the sum of its values as it is, or nearly."""

    def __init__(self):
        super().__init__()
        self.linear, self.dense = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x):
        return self.dense(self.linear(x))

    def flip(self, name):
        weight = self.get_parameter(name)
        weight.data = weight.data.flip(0)

    def flip_in_place(self, name):
        weight = self.get_parameter(name)
        weight.data.copy_(weight.data.flip(0))

    def add_little(self, name):
        self.get_parameter(name).data[0, 0] += 1e-5


@pytest.mark.parametrize("name", ["linear.weight", "dense.weight"])
@pytest.mark.parametrize("method", ["flip", "flip_in_place", "add_little"])
def test_no_change_of_a_weight_is_lost(method, name):
    gm = fxhash.transform(ChangesOneWeight(), 0.8, exclude="dense", seed=0, capture="modules")
    x = torch.randn(3, 24)
    before = gm(x)
    with pytest.raises(fxhash.TransformError, match=f"{method} changes layers or weights"):
        getattr(gm, method)(name)
    assert torch.equal(gm(x), before)


def test_loaded_models_pass_on_too(tmp_path):
    fxhash.save(fxhash.transform(Net(), 0.5), tmp_path / "model.safetensors")
    assert fxhash.load(tmp_path / "model.safetensors", Net(num_classes=6)).config.num_classes == 6


@pytest.mark.parametrize("name", MODELS)
def test_nothing_passed_on_hides_what_a_graph_module_has(name):
    """Also that no model has an attribute that can't be read."""
    model = MODELS[name][0]()
    gm = fxhash.transform(model, 0.9)
    for each in (gm, fxhash.lower_for_deploy(gm)):
        kind = torch.fx.GraphModule
        ours = {key for key in vars(type(each)) if not key.startswith("_")} - {"forward"}
        assert not {key for key in ours if hasattr(kind, key)}
        assert not ours & {*each._modules, *each._parameters, *each._buffers}
        for key in ours:
            getattr(each, key, None)


def test_a_model_whose_class_is_not_there_is_unpickled(monkeypatch):
    class Local(Net):
        pass

    gm = pickle.loads(pickle.dumps(fxhash.transform(Local(), 0.5)))
    assert gm.num_classes == 6
    assert not hasattr(gm, "forward_features")


@pytest.mark.parametrize("capture", ["trace", "modules"])
def test_compiled_with_attributes_passed_on(capture):
    gm = fxhash.transform(Net(), 0.5, capture=capture)
    compiled = torch.compile(gm, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), gm(x))
    assert compiled.num_classes == 6
