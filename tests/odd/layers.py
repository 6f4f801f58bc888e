"""Layers in unusual hands: called around `__call__`, made in forward, hooked, scripted, compiled, nested."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.odd.registry import Two, call, odd, optional


@odd()
class ForwardCalledDirectly(Two):
    def forward(self, x):
        return self.b.forward(self.a.forward(x))


@odd()
def forward_called_around_hooks():
    class Block(Two):
        def forward(self, x):
            return self.b(self.a.forward(x))

    model = Block()
    model.a.register_forward_hook(lambda module, args, output: output * 3)
    return model


@odd()
class ForwardOfClassCalled(Two):
    def forward(self, x):
        return self.b(nn.Linear.forward(self.a, x))


@odd()
class CallsDunderCall(Two):
    def forward(self, x):
        return self.b.__call__(self.a.__call__(x))


class _CallOverridden(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) * 3


@odd()
class CallOverridden(Two):
    def __call__(self, x):
        return super().__call__(x) * 3


@odd()
class CallOverriddenInChild(Two):
    def __init__(self):
        super().__init__()
        self.child = _CallOverridden(16, 16)

    def forward(self, x):
        return self.child(self.a(x))


@odd()
class CallImplementationOverridden(Two):
    def _call_impl(self, *args, **kwargs):
        return super()._call_impl(*args, **kwargs) * 3


class _RemembersCalls(Two):
    def __init__(self) -> None:
        super().__init__()
        self.called = 0

    def __call__(self, x):
        self.called += 1
        return super().__call__(x) * self.called


@odd()
class CallOfChildCounts(Two):
    def __init__(self):
        super().__init__()
        self.child = _RemembersCalls()

    def forward(self, x):
        return self.child(self.a(x))


@odd()
class LayerMadeInForward(Two):
    def forward(self, x):
        return nn.Linear(16, 16)(self.a(x))


@odd()
class NormMadeInForward(Two):
    def forward(self, x):
        return self.b(nn.LayerNorm(16)(self.a(x)))


@odd()
class ActivationMadeInForward(Two):
    def forward(self, x):
        return self.b(nn.Sequential(self.a, nn.ReLU())(x))


@odd()
class DropoutMadeInForward(Two):
    def forward(self, x):
        return self.b(nn.Dropout(0.5)(self.a(x)))


@odd()
class LayerMadeAtFirstCall(Two):
    def __init__(self):
        super().__init__()
        self.late = None

    def forward(self, x):
        if self.late is None:
            self.late = nn.Linear(16, 16)
        return self.late(self.a(x))


@odd()
class ParameterMadeInForward(Two):
    def forward(self, x):
        return self.a(x) * nn.Parameter(torch.full((16,), 2.0))


def _hooked(register: Callable[[Two], object]) -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), Two())
    register(model[1])
    return model


@odd()
def forward_hook():
    return _hooked(lambda block: block.a.register_forward_hook(lambda module, args, output: output * 3))


@odd()
def forward_hook_on_block():
    return _hooked(lambda block: block.register_forward_hook(lambda module, args, output: output * 3))


@odd()
def forward_hook_on_model():
    model = Two()
    model.register_forward_hook(lambda module, args, output: output * 3)
    return model


@odd()
def forward_hook_in_place():
    return _hooked(lambda block: block.a.register_forward_hook(lambda module, args, output: output.mul_(3)))


@odd()
def forward_hook_by_mode():
    return _hooked(
        lambda block: block.register_forward_hook(lambda module, args, output: output * (2 if module.training else 3))
    )


@odd()
def forward_hook_counts():
    calls = []

    def hook(module, args, output):
        calls.append(1)
        return output * len(calls)

    return _hooked(lambda block: block.a.register_forward_hook(hook))


@odd()
def forward_hook_counts_on_model():
    model = Two()
    model.calls = 0

    def hook(module, args, output):
        module.calls += 1
        return output * module.calls

    model.register_forward_hook(hook)
    return model


@odd()
def forward_hook_reads_weight():
    model = Two()
    model.a.register_forward_hook(lambda module, args, output: output * model.b.weight.sum())
    return model


@odd()
def forward_hook_reads_own_weight():
    return _hooked(
        lambda block: block.a.register_forward_hook(lambda module, args, output: output * module.weight.sum())
    )


@odd()
def forward_hook_of_activation():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model[1].register_forward_hook(lambda module, args, output: output * 3)
    return model


@odd()
def forward_hook_with_keywords():
    return _hooked(
        lambda block: block.a.register_forward_hook(lambda module, args, kwargs, output: output * 3, with_kwargs=True)
    )


@odd()
def forward_hook_removes_itself():
    model = Two()

    def hook(module, args, output):
        handle.remove()
        return output * 3

    handle = model.a.register_forward_hook(hook)
    return model


@odd()
def forward_pre_hook():
    return _hooked(lambda block: block.a.register_forward_pre_hook(lambda module, args: (args[0] * 3,)))


@odd()
def forward_pre_hook_changes_weight():
    def hook(module, args):
        module.weight.data.mul_(0.5)

    return _hooked(lambda block: block.a.register_forward_pre_hook(hook))


@odd()
def forward_pre_hook_sets_attribute():
    model = nn.Sequential(nn.Linear(16, 16), Two())

    def hook(module, args):
        model[1].scale = 3.0

    class Scaled(Two):
        scale = 1.0

        def forward(self, x):
            return super().forward(x) * self.scale

    model[1] = Scaled()
    model[0].register_forward_pre_hook(hook)
    return model


@odd()
def backward_hook():
    return _hooked(
        lambda block: block.a.register_full_backward_hook(
            lambda module, inputs, outputs: tuple(each if each is None else each * 3 for each in inputs)
        )
    )


@odd()
def backward_pre_hook():
    return _hooked(
        lambda block: block.a.register_full_backward_pre_hook(
            lambda module, outputs: tuple(each * 3 for each in outputs)
        )
    )


@odd()
class HookOnValue(Two):
    def forward(self, x):
        h = self.a(x)
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient * 3)
        return self.b(h)


class _TripledBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * 3


@odd()
class OwnAutogradFunction(Two):
    def forward(self, x):
        return self.b(_TripledBackward.apply(self.a(x)))


@odd()
def scripted_child():
    return nn.Sequential(nn.Linear(16, 16), torch.jit.script(nn.Linear(16, 16)), nn.Linear(16, 16))


@odd()
def scripted_child_by_mode():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return self.linear(x) * 2.0
            return self.linear(x)

    return nn.Sequential(nn.Linear(16, 16), torch.jit.script(Block()))


@odd()
def traced_child():
    child = torch.jit.trace(nn.Linear(16, 16), torch.zeros(4, 16))
    return nn.Sequential(nn.Linear(16, 16), child)


@odd()
def symbolically_traced_child():
    return nn.Sequential(nn.Linear(16, 16), torch.fx.symbolic_trace(Two()))


@odd()
def compiled_child():
    model = nn.Sequential(nn.Linear(16, 16), Two())
    model[1].compile(backend="eager")
    return model


@odd()
def compiled_child_by_function():
    return nn.Sequential(nn.Linear(16, 16), torch.compile(nn.Linear(16, 16), backend="eager"))


class _Branches(nn.Module):
    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner or nn.Linear(16, 16)
        self.other = nn.Linear(16, 16)

    def forward(self, x):
        return self.inner(x) if x.mean() > 0 else self.other(x)


@odd()
def opaque_in_opaque():
    return nn.Sequential(nn.Linear(16, 16), _Branches(_Branches(_Branches())), nn.Linear(16, 16))


@odd()
def opaque_called_twice():
    block = _Branches()
    return nn.Sequential(block, nn.Linear(16, 16), block)


@odd()
def opaque_with_tied_weights():
    model = nn.Sequential(_Branches(), _Branches())
    model[1].inner.weight = model[0].other.weight
    return model


class _CountsAndBranches(_Branches):
    def __init__(self) -> None:
        super().__init__()
        self.n = {"calls": 0}

    def forward(self, x):
        self.n["calls"] += 1
        return super().forward(x) * self.n["calls"]


@odd()
def opaque_counts():
    return nn.Sequential(nn.Linear(16, 16), _CountsAndBranches(), nn.Linear(16, 16))


@odd()
def opaque_counts_called_twice():
    block = _CountsAndBranches()
    return nn.Sequential(block, nn.Linear(16, 16), block)


@odd()
class StateOfOpaqueRead(Two):
    """The parent reads what its opaque child changed: a replica of the child may hold it."""

    def __init__(self):
        super().__init__()
        self.child = _CountsAndBranches()

    def forward(self, x):
        return self.child(self.a(x)) * self.child.n["calls"]


class _KeepsAndBranches(_Branches):
    last: Any = None

    def forward(self, x):
        self.last = x.mean()
        return super().forward(x)


@odd()
class ValueOfOpaqueRead(Two):
    def __init__(self):
        super().__init__()
        self.child = _KeepsAndBranches()

    def forward(self, x):
        return self.child(self.a(x)) + self.child.last


class _StateOfChildInOpaque(_Branches):
    def __init__(self) -> None:
        super().__init__()
        self.child = Two()
        self.child.factor = 1.0

    def forward(self, x):
        if x.mean() > 0:
            self.child.factor += 1.0
        return self.child(x) * self.child.factor


@odd()
def state_of_child_in_opaque():
    return nn.Sequential(nn.Linear(16, 16), _StateOfChildInOpaque())


@odd(lambda t: [call(t(), 0), call(t(), 1), call(t(), 0)])
class LayerByIndex(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x, i):
        return self.layers[i](x)


@odd(lambda t: [call(t(), "a"), call(t(), "b"), call(t(), "a")])
class LayerByName(Two):
    def forward(self, x, name):
        return getattr(self, name)(x)


@odd()
class ExpertByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(16, 2)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x):
        return self.experts[int(self.gate(x).sum(0).argmax())](x)


@odd()
class LoopsUntilSmall(Two):
    def forward(self, x):
        h = self.a(x)
        for _ in range(5):
            if h.abs().max() < 1:
                break
            h = torch.tanh(self.b(h))
        return h


@odd()
class GeneratesTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 16)
        self.head = nn.Linear(16, 16)

    def forward(self, x):
        token, tokens = x.sum(1).argmax(), []
        while len(tokens) < 6 and int(token) % 7:
            token = self.head(self.embedding(token)).argmax()
            tokens.append(token)
        return torch.stack([*tokens, token]), self.head(x)


@odd()
class Recurses(Two):
    def recurse(self, x, depth):
        return x if depth == 0 else self.recurse(self.a(x).tanh(), depth - 1)

    def forward(self, x):
        return self.recurse(x, 3)


@odd()
class LayerDeletedInForward(Two):
    def forward(self, x):
        if "b" in self._modules:
            y = self.b(x)
            del self.b
            return y
        return self.a(x)


@odd()
class LayerReplacedInForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU())

    def forward(self, x):
        y = self.layers(x)
        self.layers[1] = nn.Tanh()
        return y


@odd()
class AppliesInForward(Two):
    def forward(self, x):
        norms = []
        self.apply(lambda module: norms.append(module.weight.norm()) if isinstance(module, nn.Linear) else None)
        return self.a(x) * sum(norms)


@odd()
class CountsModules(Two):
    def forward(self, x):
        return self.a(x) * len(list(self.modules())) + len(list(self.named_children()))


class _LinearPlusOne(nn.Linear):
    def forward(self, input):
        return super().forward(input) + 1


@odd()
class SubclassOfLinear(Two):
    def __init__(self):
        super().__init__()
        self.a = _LinearPlusOne(16, 16)


class _NormByBatch(nn.LayerNorm):
    def forward(self, input):
        return super().forward(input) if input.shape[0] > 1 else input


@odd(lambda t: [call(t(4, 16)), call(t(1, 16)), call(t(4, 16))])
class SubclassOfNorm(Two):
    def __init__(self):
        super().__init__()
        self.norm = _NormByBatch(16)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


@dataclass
class _Result:
    y: Any
    extra: Any = None


@odd(optional)
class ReturnsDataclass(Two):
    def forward(self, x, m=None):
        return _Result(self.a(x), m)


@odd()
class ReturnsDataclassFromChild(Two):
    def __init__(self):
        super().__init__()
        self.child = ReturnsDataclass()

    def forward(self, x):
        result = self.child(x)
        return self.b(result.y) * (2.0 if result.extra is None else 3.0)


@odd()
class ReturnsNumber(Two):
    def forward(self, x):
        h = self.a(x)
        return h, float(h.mean()), h.shape


@odd()
class ReturnsNothing(Two):
    def forward(self, x):
        self.a(x)


@odd()
class ReturnsIterator(Two):
    def forward(self, x):
        return [layer(x) for layer in self.children()]


@odd()
class BatchNormed(Two):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


@odd()
class NormCalledByMode(Two):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        h = self.a(x)
        return F.batch_norm(h, self.norm.running_mean, self.norm.running_var, training=self.norm.training)


@odd()
class Attends(Two):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.b(self.attention(x[None], x[None], x[None])[0])


@odd()
class Recurrent(Two):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 16)

    def forward(self, x):
        return self.b(self.lstm(x)[0])


@odd()
class RecurrentWithState(Two):
    def __init__(self):
        super().__init__()
        self.gru, self.state = nn.GRU(16, 16), None

    def forward(self, x):
        y, state = self.gru(x, self.state)
        self.state = state.detach()
        return self.b(y)


@odd()
class MapsOverBatch(Two):
    def forward(self, x):
        return torch.vmap(self.a)(x)


@odd()
class DifferentiatesItself(Two):
    def forward(self, x):
        return torch.func.jacrev(lambda value: self.a(value).sum())(x) + self.b(x)


@odd()
class ChecksForLayer(Two):
    """Nothing odd: what a model has is known while tracing."""

    def __init__(self):
        super().__init__()
        self.norm = None

    def forward(self, x):
        h = self.a(x)
        if self.norm is not None:
            h = self.norm(h)
        return self.b(h) if getattr(self, "extra", None) is None else h


@odd()
class LayersAtRandom(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        return random.choice(self.layers)(x)


@odd()
class LayersInRandomOrder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        for i in torch.randperm(3):
            x = self.layers[i](x)
        return x


@odd(lambda t: [call(t(4, 16)), call(t(2, 16)), call(t(6, 16))])
class UsesBatchSize(Two):
    def forward(self, x):
        n = x.shape[0]
        return self.a(x) / n + torch.ones(n, 16).cumsum(0)


class _Wrapper(Tensor):
    pass


@odd(lambda t: [call(t()), call(t().as_subclass(_Wrapper)), call(t())])
class AsksForSubclass(Two):
    def forward(self, x):
        y = self.a(x) * (2.0 if isinstance(x, _Wrapper) else 3.0)
        return y.as_subclass(Tensor)
