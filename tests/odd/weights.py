"""Weights that are reached otherwise than by attributes, share storage, or are changed by forward."""

# ruff: noqa: B009, B010
from __future__ import annotations

import copy
import weakref
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize

from tests.odd.registry import Two, odd


@odd()
class WeightsInList(Two):
    def __init__(self):
        super().__init__()
        self.ws = [self.a.weight]

    def forward(self, x):
        return F.linear(x, self.ws[0]) + self.b(x)


@odd()
class WeightsInTuple(Two):
    def __init__(self):
        super().__init__()
        self.ws = ((self.a.weight, self.a.bias), (self.b.weight, self.b.bias))

    def forward(self, x):
        for weight, bias in self.ws:
            x = F.linear(x, weight, bias)
        return x


@odd()
class WeightsInNestedDict(Two):
    def __init__(self):
        super().__init__()
        self.ws = {"layers": [{"w": self.a.weight}]}

    def forward(self, x):
        return F.linear(x, self.ws["layers"][0]["w"]) + self.b(x)


@odd()
class WeightsInObject(Two):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(inner=SimpleNamespace(w=self.a.weight))

    def forward(self, x):
        return F.linear(x, self.config.inner.w) + self.b(x)


@odd()
class ModulesInDict(Two):
    def __init__(self):
        super().__init__()
        self.layers = {"first": self.a, "second": self.b}

    def forward(self, x):
        return self.layers["second"](self.layers["first"](x))


@odd()
class ModulesInList(Two):
    def __init__(self):
        super().__init__()
        self.layers = [self.a, self.b]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@odd()
class ModuleInListOnly(Two):
    """The layer in the list has no name: `parameters()` doesn't know it."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(16, 16)]

    def forward(self, x):
        return self.b(self.layers[0](self.a(x)))


@odd()
class LambdaOverSelf(Two):
    def __init__(self):
        super().__init__()
        self.run = lambda x: self.a(x)

    def forward(self, x):
        return self.b(self.run(x))


@odd()
class LambdaOverWeight(Two):
    def __init__(self):
        super().__init__()
        weight = self.a.weight
        self.run = lambda x: F.linear(x, weight)

    def forward(self, x):
        return self.b(self.run(x)) + self.a(x)


@odd()
class LambdaWithDefault(Two):
    def __init__(self):
        super().__init__()
        self.run = lambda x, layer=self.a: layer(x)

    def forward(self, x):
        return self.b(self.run(x))


@odd()
class ClosureOverModule(Two):
    def __init__(self):
        super().__init__()
        layer = self.a

        def run(x):
            return layer(x)

        self.steps = [run, torch.relu]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return self.b(x)


@odd()
class ClosureOverClosure(Two):
    def __init__(self):
        super().__init__()
        inner = lambda x: self.a(x)  # noqa: E731
        self.run = {"outer": lambda x: inner(x) * 2}

    def forward(self, x):
        return self.b(self.run["outer"](x))


@odd()
class PartialOverWeight(Two):
    def __init__(self):
        super().__init__()
        self.run = partial(F.linear, weight=self.a.weight, bias=self.a.bias)

    def forward(self, x):
        return self.b(self.run(x))


@odd()
class PartialOverModule(Two):
    def __init__(self):
        super().__init__()
        self.run = partial(self.a)

    def forward(self, x):
        return self.b(self.run(x))


@odd()
class BoundMethodOfLayer(Two):
    def __init__(self):
        super().__init__()
        self.run = self.a.forward

    def forward(self, x):
        return self.b(self.run(x))


@odd()
class BoundMethodOfSelf(Two):
    def __init__(self):
        super().__init__()
        self.run = {"first": self.first}

    def first(self, x):
        return self.a(x)

    def forward(self, x):
        return self.b(self.run["first"](x))


@odd()
def forward_replaced():
    model = Two()
    model.forward = lambda x: model.b(model.a(x)) * 3
    return model


@odd()
def forward_replaced_by_method():
    model = Two()
    model.forward = MethodType(lambda self, x: self.b(self.a(x)) * 3, model)
    return model


@odd()
def forward_wrapped():
    model = Two()
    original = model.forward
    model.forward = lambda x: original(x) * 3
    return model


@odd()
def forward_of_layer_replaced():
    model = Two()
    model.a.forward = lambda x: F.linear(x, model.a.weight) * 3
    return model


@odd()
def forward_of_layer_wrapped():
    model = Two()
    original = model.a.forward

    def forward(x):
        return original(x) * 3

    model.a.forward = forward
    return model


@odd()
def forward_of_block_replaced():
    model = nn.Sequential(Two(), nn.Linear(16, 16))
    model[0].forward = MethodType(lambda self, x: self.b(x), model[0])
    return model


class _ReadsParent(nn.Module):
    def __init__(self, parent: Any) -> None:
        super().__init__()
        self.parent = parent
        self.linear = nn.Linear(16, 16)


class _ReadsListedParent(_ReadsParent):
    def forward(self, x):
        return self.linear(x) + F.linear(x, self.parent[0].a.weight)


@odd()
class ParentInList(Two):
    def __init__(self):
        super().__init__()
        self.child = _ReadsListedParent([self])

    def forward(self, x):
        return self.child(self.a(x))


class _ReadsReferencedParent(_ReadsParent):
    def forward(self, x):
        return self.linear(x) + self.parent().a(x)


@odd()
class ParentByWeakReference(Two):
    def __init__(self):
        super().__init__()
        self.child = _ReadsReferencedParent(weakref.ref(self))

    def forward(self, x):
        return self.child(self.b(x))


class _ReadsHiddenParent(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "parent", parent)
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return self.linear(x) + self.parent.a(x)


@odd()
class ParentHidden(Two):
    def __init__(self):
        super().__init__()
        self.child = _ReadsHiddenParent(self)

    def forward(self, x):
        return self.child(self.b(x))


class _ReadsParentInIf(_ReadsHiddenParent):
    def forward(self, x):
        return self.linear(x) if x.mean() > 0 else self.parent.a(x)


@odd()
class ParentOfOpaqueChild(Two):
    def __init__(self):
        super().__init__()
        self.child = _ReadsParentInIf(self)

    def forward(self, x):
        return self.child(self.b(x))


@odd()
class SumOfParameters(Two):
    def forward(self, x):
        return self.a(x) * sum(p.sum() for p in self.parameters())


@odd()
class NormOfNamedParameters(Two):
    def forward(self, x):
        penalty = sum(p.norm() for name, p in self.named_parameters() if name.endswith("weight"))
        return {"y": self.b(self.a(x)), "penalty": penalty}


@odd()
class ParametersToVector(Two):
    def forward(self, x):
        return self.a(x) * parameters_to_vector(self.parameters()).mean()


@odd()
class DtypeOfFirstParameter(Two):
    def forward(self, x):
        return self.b(self.a(x.to(next(self.parameters()).dtype)))


@odd()
class DtypeOfFirstParameterOfChild(Two):
    def __init__(self):
        super().__init__()
        self.child = Two()

    def forward(self, x):
        first = next(iter(self.child.parameters()))
        return self.child(x.to(first.device, first.dtype)) * first.shape[0]


@odd()
class CountsParameters(Two):
    def forward(self, x):
        return self.a(x) * sum(p.numel() for p in self.parameters()) / 100


@odd()
class CountsTrainableParameters(Two):
    def forward(self, x):
        return self.a(x) * sum(p.numel() for p in self.parameters() if p.requires_grad) / 100


class _Opaque(Two):
    """Opaque wherever it is nested."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, args, output: None)


def _nested(kind: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), kind(), nn.Linear(16, 16))


@odd()
def opaque_sum_of_parameters():
    class Block(_Opaque):
        def forward(self, x):
            return self.a(x) * sum(p.sum() for p in self.parameters())

    return _nested(Block)


@odd()
def opaque_parameters_to_vector():
    class Block(_Opaque):
        def forward(self, x):
            return self.a(x) * parameters_to_vector(self.parameters()).mean()

    return _nested(Block)


@odd()
def opaque_first_parameter():
    class Block(_Opaque):
        def forward(self, x):
            return self.a(x.to(next(self.parameters()).dtype))

    return _nested(Block)


@odd()
def opaque_type_of_children():
    class Block(_Opaque):
        def forward(self, x):
            return x + sum(m(x) for m in self.children() if type(m) is nn.Linear)

    return _nested(Block)


@odd()
def opaque_instances_among_children():
    class Block(_Opaque):
        def forward(self, x):
            return x + sum(F.linear(x, m.weight) for m in self.modules() if isinstance(m, nn.Linear))

    return _nested(Block)


@odd()
def opaque_clamps_weight():
    class Block(_Opaque):
        def forward(self, x):
            self.a.weight.data.clamp_(-0.1, 0.1)
            return self.a(x)

    return _nested(Block)


@odd()
def opaque_weight_decays():
    class Block(_Opaque):
        def forward(self, x):
            with torch.no_grad():
                self.a.weight.mul_(0.5)
            return self.a(x)

    return _nested(Block)


@odd()
def opaque_state_dict():
    class Block(_Opaque):
        def forward(self, x):
            return F.linear(x, self.state_dict()["a.weight"])

    return _nested(Block)


@odd()
def opaque_reads_weight():
    class Block(_Opaque):
        def forward(self, x):
            return self.b(x) + self.a.weight.norm() + F.linear(x, self.a.weight.t())

    return _nested(Block)


@odd()
def opaque_length_of_children():
    class Block(_Opaque):
        def forward(self, x):
            return self.a(x) * len(list(self.parameters())) * len(self.state_dict())

    return _nested(Block)


@odd()
def opaque_named_parameters():
    class Block(_Opaque):
        def forward(self, x):
            named = dict(self.named_parameters())
            return F.linear(x, named["a.weight"], named["a.bias"])

    return _nested(Block)


@odd()
def opaque_attributes_of_layer():
    class Block(_Opaque):
        def forward(self, x):
            layer = self.a
            return layer(x) * layer.in_features * layer.out_features + layer.weight.shape[0] + layer.weight.dim()

    return _nested(Block)


@odd()
def opaque_parametrizes():
    class Block(_Opaque):
        def __init__(self):
            super().__init__()
            parametrizations.weight_norm(self.a)

    return _nested(Block)


@odd()
def opaque_list_of_weights():
    class Block(_Opaque):
        def __init__(self):
            super().__init__()
            self.ws = [self.a.weight]

        def forward(self, x):
            return self.b(F.linear(x, self.ws[0]))

    return _nested(Block)


@odd()
def opaque_dict_of_modules():
    class Block(_Opaque):
        def __init__(self):
            super().__init__()
            self.layers = {"a": self.a}

        def forward(self, x):
            return self.b(self.layers["a"](x))

    return _nested(Block)


@odd()
def opaque_lambda_over_self():
    class Block(_Opaque):
        def __init__(self):
            super().__init__()
            self.run = lambda x: self.a(x)

        def forward(self, x):
            return self.b(self.run(x))

    return _nested(Block)


@odd()
def opaque_partial_over_weight():
    class Block(_Opaque):
        def __init__(self):
            super().__init__()
            self.run = partial(F.linear, weight=self.a.weight)

        def forward(self, x):
            return self.b(self.run(x))

    return _nested(Block)


@odd()
def opaque_bound_method_of_layer():
    class Block(_Opaque):
        def __init__(self):
            super().__init__()
            self.run = self.a.forward

        def forward(self, x):
            return self.b(self.run(x))

    return _nested(Block)


@odd()
def opaque_child_with_parent_in_list():
    class Child(nn.Module):
        def __init__(self, parent):
            super().__init__()
            self.parents = [parent]

        def forward(self, x):
            return self.parents[0].a(x)

    class Block(_Opaque):
        def __init__(self):
            super().__init__()
            self.child = Child(self)

        def forward(self, x):
            return self.b(self.child(x))

    return _nested(Block)


@odd()
def opaque_weights_are_one_object():
    class Block(_Opaque):
        def __init__(self):
            super().__init__()
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x)) * (2.0 if self.a.weight is self.b.weight else 3.0)

    return _nested(Block)


@odd()
def opaque_weight_is_parameter():
    class Block(_Opaque):
        def forward(self, x):
            return self.a(x) * (2.0 if isinstance(self.a.weight, nn.Parameter) else 3.0)

    return _nested(Block)


@odd()
def opaque_weight_needs_gradient():
    class Block(_Opaque):
        def forward(self, x):
            return self.a(x) * (2.0 if self.a.weight.requires_grad else 3.0)

    return _nested(Block)


@odd()
def opaque_assigns_weight():
    class Block(_Opaque):
        def forward(self, x):
            self.a.weight = nn.Parameter(self.a.weight.detach() * 0.5)
            return self.a(x)

    return _nested(Block)


@odd()
def opaque_functional_call():
    class Block(_Opaque):
        def forward(self, x):
            return torch.func.functional_call(self.a, {"weight": self.b.weight}, (x,))

    return _nested(Block)


@odd()
class TypeOfChildren(Two):
    def forward(self, x):
        for child in self.children():
            x = child(x) * (2.0 if type(child) is nn.Linear else 3.0)
        return x


@odd()
class StateDictRead(Two):
    def forward(self, x):
        state = self.state_dict()
        return F.linear(x, state["a.weight"], state["a.bias"])


@odd()
class ParameterByName(Two):
    def forward(self, x):
        return F.linear(x, self.get_parameter("a.weight")) + self.get_submodule("b")(x)


@odd()
class ParameterByTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 16))

    def forward(self, x):
        return x @ self._parameters["w"]


@odd()
class ModuleByTable(Two):
    def forward(self, x):
        return self._modules["b"](self.__dict__["_modules"]["a"](x))


@odd()
class ParametersInLists(nn.Module):
    def __init__(self):
        super().__init__()
        self.ws = nn.ParameterList(nn.Parameter(torch.randn(16, 16) / 4) for _ in range(2))
        self.named = nn.ParameterDict({"w": nn.Parameter(torch.randn(16, 16) / 4)})

    def forward(self, x):
        for w in self.ws:
            x = x @ w
        return x @ self.named["w"]


@odd()
class ParametersStacked(Two):
    def forward(self, x):
        w = torch.stack([self.a.weight, self.b.weight])
        return torch.einsum("ni,koi->no", x, w)


@odd()
class ComputedWeightKept(Two):
    """Computed once from a weight: what it is computed from stays reachable by its history."""

    def __init__(self):
        super().__init__()
        self.doubled = self.a.weight * 2

    def forward(self, x):
        return F.linear(x, self.doubled) + self.a(x)


@odd()
class ViewOfWeightKept(Two):
    def __init__(self):
        super().__init__()
        self.transposed = self.a.weight.t()

    def forward(self, x):
        return x @ self.transposed + self.a(x)


@odd()
class DetachedWeightKept(Two):
    def __init__(self):
        super().__init__()
        self.teacher = self.a.weight.detach()

    def forward(self, x):
        return F.linear(x, self.teacher) + self.a(x)


@odd()
class WeightInArray(Two):
    def __init__(self):
        super().__init__()
        self.array = self.a.weight.detach().numpy()

    def forward(self, x):
        return F.linear(x, torch.from_numpy(self.array)) + self.a(x)


@odd()
class WeightInBuffer(Two):
    """A buffer that is the weight's own memory."""

    def __init__(self):
        super().__init__()
        self.register_buffer("teacher", self.a.weight.detach(), persistent=False)

    def forward(self, x):
        return F.linear(x, self.teacher) + self.a(x)


@odd()
class WeightByWeakReference(Two):
    def __init__(self):
        super().__init__()
        self.reference = weakref.ref(self.a.weight)

    def forward(self, x):
        return F.linear(x, self.reference()) + self.a(x)


REGISTRY: list[Any] = []


@odd()
class WeightInGlobal(Two):
    """The global list has the weights of all that were built, but never that of a copy."""

    def __init__(self):
        super().__init__()
        REGISTRY.append(self.a.weight)

    def forward(self, x):
        return F.linear(x, REGISTRY[-1]) + self.a(x)


@odd()
class TransposedTie(Two):
    def __init__(self):
        super().__init__()
        self.b.weight = nn.Parameter(self.a.weight.data.t())


@odd()
class SlicedTie(nn.Module):
    def __init__(self):
        super().__init__()
        both = torch.randn(32, 16) / 4
        self.whole = nn.Parameter(both)
        self.part = nn.Parameter(both[:16])

    def forward(self, x):
        return F.linear(x, self.whole)[:, :16] + F.linear(x, self.part)


@odd()
class ReshapedTie(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 16) / 4)
        self.kernel = nn.Parameter(self.w.data.view(16, 16, 1))

    def forward(self, x):
        return F.linear(x, self.w) + F.conv1d(x[..., None], self.kernel)[..., 0]


@odd()
class TiedByData(Two):
    def __init__(self):
        super().__init__()
        self.b.weight.data = self.a.weight.data


@odd()
class TiedWeights(Two):
    def __init__(self):
        super().__init__()
        self.b.weight = self.a.weight


@odd()
class TiedLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16)
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x))


@odd()
class FlatWeights(nn.Module):
    """All weights are views of one flat parameter, as sharded training makes them."""

    def __init__(self):
        super().__init__()
        flat = torch.randn(2 * 256) / 4
        self.w = nn.Parameter(flat[:256].view(16, 16))
        self.v = nn.Parameter(flat[256:].view(16, 16))

    def forward(self, x):
        return F.linear(F.linear(x, self.w), self.v)


@odd()
class WeightsAreOneObject(Two):
    def __init__(self):
        super().__init__()
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.a(x) * (2.0 if self.a.weight is self.b.weight else 3.0)


@odd()
class ModulesAsKeys(Two):
    def __init__(self):
        super().__init__()
        self.factors = {self.a: 2.0}

    def forward(self, x):
        for layer in (self.a, self.b):
            x = layer(x) * self.factors.get(layer, 3.0)
        return x


@odd()
class AsksWhetherWeightIsParameter(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if isinstance(self.a.weight, nn.Parameter) else 3.0)


@odd()
class AsksForTypeOfWeight(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if type(self.a.weight) is nn.Parameter else 3.0)


@odd()
class AsksWhetherWeightNeedsGradient(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if self.a.weight.requires_grad else 3.0)


@odd()
class AsksWhetherWeightIsLeaf(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if self.a.weight.is_leaf else 3.0)


@odd()
class AsksForGradientOfWeight(Two):
    def forward(self, x):
        return self.a(x) * (2.0 if self.a.weight.grad is None else 3.0)


@odd()
class AsksWhetherBiasIsNone(nn.Module):
    """Nothing odd: a weight that is not there is known while tracing."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        return self.a(x) * (2.0 if self.a.bias is None else 3.0)


@odd()
class BranchesOnWeight(Two):
    def forward(self, x):
        return self.a(x) if self.a.weight.sum() > 0 else self.b(x)


@odd()
class NumberOfWeight(Two):
    def forward(self, x):
        return self.b(x) * float(self.a.weight.detach().max())


@odd()
class NumberOfBias(Two):
    def forward(self, x):
        return self.b(x) * self.a.bias.tolist()[0]


@odd()
class ArrayOfWeight(Two):
    def forward(self, x):
        return self.b(x) * float(self.a.weight.detach().numpy().max())


@odd()
class ClampsWeight(Two):
    def forward(self, x):
        with torch.no_grad():
            self.a.weight.clamp_(-0.1, 0.1)
        return self.a(x)


@odd()
class ClampsDataOfWeight(Two):
    def forward(self, x):
        self.a.weight.data.clamp_(-0.1, 0.1)
        return self.a(x)


@odd()
class ReplacesDataOfWeight(Two):
    def forward(self, x):
        self.a.weight.data = self.a.weight.data.clamp(-0.1, 0.1)
        return self.a(x)


@odd()
class NormalizesWeight(Two):
    def forward(self, x):
        with torch.no_grad():
            self.a.weight /= self.a.weight.norm(dim=1, keepdim=True)
        return self.a(x)


@odd()
class WeightDecays(Two):
    def forward(self, x):
        self.a.weight.data.mul_(0.5)
        return self.a(x)


@odd()
class WeightDecaysByCopy(Two):
    def forward(self, x):
        self.a.weight.data.copy_(self.a.weight.data * 0.5)
        return self.a(x)


@odd()
class WeightDecaysThroughView(Two):
    def forward(self, x):
        self.a.weight.detach().view(-1).mul_(0.5)
        return self.a(x)


@odd()
class BiasDecays(Two):
    def forward(self, x):
        self.a.bias.data.mul_(0.5)
        return self.a(x)


@odd()
class RenormalizesEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 16, max_norm=0.5)
        self.a = nn.Linear(16, 16)

    def forward(self, x):
        return self.a(self.embedding(x.abs().long().clamp(max=15)))


@odd()
class MovingAverageOfWeight(Two):
    def forward(self, x):
        with torch.no_grad():
            self.b.weight.lerp_(self.a.weight, 0.5)
        return self.b(self.a(x))


@odd()
class WeightAssigned(Two):
    def forward(self, x):
        self.a.weight = nn.Parameter(self.a.weight.detach() * 0.5)
        return self.a(x)


@odd()
class WeightAssignedBySetattr(Two):
    def forward(self, x):
        setattr(self.a, "weight", nn.Parameter(self.b.weight.detach().clone()))
        return self.a(x)


@odd()
class WeightSwapped(Two):
    def forward(self, x):
        kept = self.a.weight
        self.a.weight = self.b.weight
        y = self.a(x)
        self.a.weight = kept
        return y + self.a(x)


@odd()
class LoadsStateDict(Two):
    def forward(self, x):
        self.b.load_state_dict(self.a.state_dict())
        return self.b(x)


@odd()
class InitializesInForward(Two):
    def forward(self, x):
        nn.init.ones_(self.a.weight)
        return self.a(x)


@odd()
class FunctionalCall(Two):
    def forward(self, x):
        named = {name: p * 2 for name, p in self.a.named_parameters()}
        return torch.func.functional_call(self.a, named, (x,))


@odd()
class FunctionalCallOfChild(Two):
    def __init__(self):
        super().__init__()
        self.child = Two()

    def forward(self, x):
        return torch.func.functional_call(self.child, {"a.weight": self.a.weight}, (x,))


class _Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).t()


@odd()
class Parametrized(Two):
    def __init__(self):
        super().__init__()
        parametrize.register_parametrization(self.a, "weight", _Symmetric())


@odd()
class ParametrizedCached(Parametrized):
    def forward(self, x):
        with parametrize.cached():
            return self.a(self.a(x))


@odd()
class WeightNormed(Two):
    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.a)


@odd()
class SpectralNormed(Two):
    def __init__(self):
        super().__init__()
        parametrizations.spectral_norm(self.a)


@odd()
class CopiesLayer(Two):
    def forward(self, x):
        return copy.deepcopy(self.a)(x) + self.b(x)


@odd()
class CopiesSelf(Two):
    def forward(self, x):
        other = copy.copy(self)
        return other.b(other.a(x))


@odd()
class WeightByGetattr(Two):
    def forward(self, x):
        for name in "ab":
            x = F.linear(x, getattr(getattr(self, name), "weight"))
        return x


@odd()
class WeightKeptForBackward(Two):
    """A hook of the weight that doubles its gradient."""

    def __init__(self):
        super().__init__()
        self.a.weight.register_hook(lambda gradient: gradient * 2)


@odd()
class HiddenByGetattribute(Two):
    def __getattr__(self, name):
        return super().__getattr__({"first": "a", "second": "b"}.get(name, name))

    def forward(self, x):
        return self.second(self.first(x))


@odd()
class WeightProperty(Two):
    @property
    def scaled(self):
        return self.a.weight * 0.5

    def forward(self, x):
        return F.linear(x, self.scaled)


@odd()
class FrozenWeight(Two):
    def __init__(self):
        super().__init__()
        self.a.weight.requires_grad_(False)
        self.ws = [self.a.weight]

    def forward(self, x):
        return self.b(F.linear(x, self.ws[0]))


@odd()
class ClassHoldsModule(Two):
    def __init__(self):
        super().__init__()
        type(self).shared = [self.a]

    def forward(self, x):
        return self.shared[0](x) + self.b(x)
