"""In-place arithmetic: through aliases and views, on inputs and buffers, into `out=`, with the result thrown away."""

from __future__ import annotations

import operator

import torch
from torch import nn
from torch.nn import functional as F

from tests.odd.registry import Two, call, odd, optional


@odd()
class AliasAddedTo(Two):
    def forward(self, x):
        h = self.a(x)
        g = h
        g += 1
        return self.b(h)


@odd()
class AliasMultiplied(Two):
    def forward(self, x):
        h = self.a(x)
        g = h
        g *= 2
        return self.b(h) + g


@odd()
class SeveralAliases(Two):
    def forward(self, x):
        h = self.a(x)
        f = g = h
        g -= 1
        f /= 2
        return self.b(h)


@odd()
class InputAddedTo(Two):
    def forward(self, x):
        x += 1
        return self.a(x)


@odd()
class AliasOfInputAddedTo(Two):
    def forward(self, x):
        y = x
        y += 1
        return self.a(x) + y


@odd()
class InputChangedAfterUse(Two):
    def forward(self, x):
        h = self.a(x)
        x.mul_(0)
        return self.b(h)


@odd(lambda t: [call(x := t(), x), call(t(), t())])
class InputsAreAliases(Two):
    def forward(self, x, y):
        x += 1
        return self.a(x) + self.b(y)


@odd(lambda t: [call({"x": t()}), call({"x": t()})])
class InputInDictAddedTo(Two):
    def forward(self, batch):
        batch["x"] += 1
        return self.a(batch["x"])


@odd(lambda t: [call({"x": t()}), call({"x": t()})])
class KeyAddedToInput(Two):
    def forward(self, batch):
        batch["h"] = self.a(batch["x"])
        return self.b(batch["h"])


@odd(lambda t: [call({"x": t(), "m": 2.0}), call({"x": t(), "m": 3.0})])
class KeyPoppedFromInput(Two):
    def forward(self, batch):
        return self.a(batch["x"]) * batch.pop("m")


@odd(lambda t: [call(t(), []), call(t(), [t()])])
class ListOfInputGrows(Two):
    def forward(self, x, outputs):
        outputs.append(self.a(x))
        return self.b(outputs[-1])


@odd()
class ViewAddedTo(Two):
    def forward(self, x):
        h = self.a(x)
        v = h.view(-1)
        v += 1
        return self.b(h)


@odd()
class TransposedAddedTo(Two):
    def forward(self, x):
        h = self.a(x)
        h.t().add_(torch.arange(4.0))
        return self.b(h)


@odd()
class ReshapedAddedTo(Two):
    def forward(self, x):
        h = self.a(x)
        v = h.reshape(4, 4, 4)
        v *= 2
        return self.b(h)


@odd()
class HalfMultiplied(Two):
    def forward(self, x):
        h = self.a(x)
        first, second = h[:, :8], h[:, 8:]
        first *= 2
        return self.b(h) + second.sum()


@odd()
class SliceAddedTo(Two):
    def forward(self, x):
        h = self.a(x)
        h[:, :4] += 1
        return self.b(h)


@odd()
class SliceAssigned(Two):
    def forward(self, x):
        h = self.a(x)
        h[:, 0] = 3.0
        return self.b(h)


@odd()
class SliceOfViewAssigned(Two):
    def forward(self, x):
        h = self.a(x)
        h.view(4, 4, 4)[:, 0] = 3.0
        return self.b(h)


@odd()
class SliceOfInputAssigned(Two):
    def forward(self, x):
        x[0] = 0.0
        return self.a(x)


@odd()
class SliceOfInputZeroed(Two):
    def forward(self, x):
        x[0].zero_()
        return self.a(x)


@odd()
class RowZeroedInPlace(Two):
    def forward(self, x):
        h = self.a(x)
        h[0].zero_()
        return self.b(h)


@odd()
class OutArgument(Two):
    def forward(self, x):
        h = self.a(x)
        torch.add(h.detach(), 1, out=h.detach())
        return self.b(h)


@odd()
class OutIsFresh(Two):
    def forward(self, x):
        h = self.a(x).detach()
        room = torch.empty_like(h)
        torch.mul(h, 2, out=room)
        return self.b(room)


@odd()
class OutIsPlainTensor(Two):
    def __init__(self):
        super().__init__()
        self.room = torch.zeros(4, 16)

    def forward(self, x):
        torch.mul(self.a(x).detach(), 2, out=self.room)
        return self.b(self.room.clone())


@odd()
class InPlaceThroughList(Two):
    def forward(self, x):
        h = self.a(x)
        values = [h]
        values[0] += 1
        return self.b(h)


@odd()
class InPlaceThroughDict(Two):
    def forward(self, x):
        h = self.a(x)
        values = {"h": h}
        values["h"] *= 2
        return self.b(h)


@odd()
class InPlaceThroughAttribute(Two):
    def __init__(self):
        super().__init__()
        self.h = None

    def forward(self, x):
        h = self.a(x)
        self.h = h
        self.h += 1
        return self.b(h)


def _double(value):
    value *= 2


@odd()
class InPlaceInHelper(Two):
    def forward(self, x):
        h = self.a(x)
        _double(h)
        return self.b(h)


class _AddsInPlace(nn.Module):
    def forward(self, h):
        h += 1
        return h


@odd()
class InPlaceInLeaf(Two):
    def __init__(self):
        super().__init__()
        self.add = _AddsInPlace()

    def forward(self, x):
        h = self.a(x)
        self.add(h)
        return self.b(h)


class _LayerAddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, h):
        h += 1
        return self.linear(h)


@odd()
class InPlaceInChild(Two):
    def __init__(self):
        super().__init__()
        self.child = _LayerAddsInPlace()

    def forward(self, x):
        h = self.a(x)
        return self.child(h) + self.b(h)


@odd()
class ResultOfReluUnused(Two):
    def forward(self, x):
        h = self.a(x)
        F.relu(h, inplace=True)
        return self.b(h)


@odd()
class ResultOfReluModuleUnused(Two):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.a(x)
        self.relu(h)
        return self.b(h)


@odd()
class ReluModuleOnAlias(Two):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.a(x)
        return self.b(h) + self.relu(h) + h


@odd()
class ResultOfMethodUnused(Two):
    def forward(self, x):
        h = self.a(x)
        h.add_(1)
        h.clamp_(min=0)
        return self.b(h)


@odd()
class ResultOfFunctionUnused(Two):
    def forward(self, x):
        h = self.a(x)
        torch.relu_(h)
        return self.b(h)


@odd()
class ResultOfDropoutUnused(Two):
    def forward(self, x):
        h = self.a(x)
        F.dropout(h, 0.5, self.training, inplace=True)
        return self.b(h)


@odd()
class OperatorInPlaceUnused(Two):
    def forward(self, x):
        h = self.a(x)
        operator.iadd(h, 1)
        return self.b(h)


@odd()
class DunderInPlaceUnused(Two):
    def forward(self, x):
        h = self.a(x)
        h.__iadd__(1)
        return self.b(h)


@odd()
class ForeachInPlace(Two):
    def forward(self, x):
        g, h = self.a(x), self.b(x)
        torch._foreach_add_([g, h], 1.0)
        return self.b(g) + h


@odd()
class DataAddedTo(Two):
    def forward(self, x):
        h = self.a(x)
        h.data.add_(1)
        return self.b(h)


@odd()
class DetachedAddedTo(Two):
    def forward(self, x):
        h = self.a(x)
        h.detach().add_(1)
        return self.b(h)


@odd()
class DataReplaced(Two):
    def forward(self, x):
        h = self.a(x)
        h.data = h.data * 2
        return self.b(h)


@odd()
class InitializedInPlace(Two):
    def forward(self, x):
        h = torch.empty(4, 16)
        nn.init.constant_(h, 0.5)
        return self.a(x + h)


@odd()
class CopiedInPlace(Two):
    def forward(self, x):
        h = torch.zeros_like(x)
        h.copy_(x)
        return self.a(h)


@odd()
class FilledInLoop(Two):
    def forward(self, x):
        rows = torch.zeros(4, 16)
        for i in range(4):
            rows[i] = self.a(x[i])
        return self.b(rows)


@odd()
class MaskFilledInPlace(Two):
    def forward(self, x):
        h = self.a(x)
        h.masked_fill_(h < 0, 0.0)
        return self.b(h)


@odd()
class ScatteredInPlace(Two):
    def forward(self, x):
        h = self.a(x)
        h.index_add_(0, torch.tensor([0, 0]), torch.ones(2, 16))
        return self.b(h)


@odd()
class BufferAddedTo(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(16))

    def forward(self, x):
        self.total += x.detach().mean(0)
        return self.a(x + self.total)


@odd()
class AliasOfBufferAddedTo(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(16))

    def forward(self, x):
        total = self.total
        total += 1
        return self.a(x + self.total)


@odd()
class ViewOfBufferAddedTo(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(2, 16))

    def forward(self, x):
        first = self.total[0]
        first += 1
        return self.a(x + self.total.sum(0))


@odd()
class BufferWrittenAfterUse(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(4, 16))

    def forward(self, x):
        y = self.a(x + self.last)
        self.last.copy_(x.detach())
        return y


@odd()
class BufferWrittenOnlyInTraining(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.a(x - self.mean)


@odd()
class BufferOfChildWritten(Two):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        self.norm.running_mean.fill_(0.5)
        return self.norm(self.a(x))


@odd()
class BuffersAreViews(Two):
    def __init__(self):
        super().__init__()
        both = torch.zeros(2, 16)
        self.register_buffer("first", both[0])
        self.register_buffer("whole", both)

    def forward(self, x):
        self.whole.add_(1)
        return self.a(x + self.first)


@odd()
class LiteralTensorAddedTo(Two):
    def forward(self, x):
        total = torch.zeros(4, 16)
        total += self.a(x)
        total += self.b(x)
        return total


@odd()
class FreshValueAddedTo(Two):
    """Nothing odd: no alias of what is changed."""

    def forward(self, x):
        h = self.a(x)
        h += x
        return self.b(h)


@odd()
class ResidualBeforeInPlace(Two):
    def forward(self, x):
        residual = h = self.a(x)
        h = F.relu_(h)
        return self.b(h) + residual


@odd(optional)
class OptionalAddedInPlace(Two):
    def forward(self, x, m=None):
        h = self.a(x)
        kept = h
        if m is not None:
            h += m
        return self.b(kept)


@odd()
class SwappedInPlace(Two):
    def forward(self, x):
        g, h = self.a(x), self.b(x)
        g, h = h, g
        g += 1
        return self.a(h) + g


@odd()
class ExpandedView(Two):
    def forward(self, x):
        h = self.a(x).sum(0, keepdim=True)
        wide = h.expand(4, 16)
        h += 1
        return self.b(wide)


@odd()
class UnbindInPlace(Two):
    def forward(self, x):
        h = self.a(x).detach()
        for i, row in enumerate(h.unbind(0)):
            row.mul_(i)
        return self.b(h)


@odd()
class ResizedInPlace(Two):
    def forward(self, x):
        h = self.a(x)
        h.unsqueeze_(0)
        return self.b(h).squeeze_(0)


@odd()
class TransposedInPlace(Two):
    def forward(self, x):
        h = self.a(x[:4])
        h.t_()
        return h.sum(1) + self.b(x).sum()


@odd()
class OutputIsInput(Two):
    """The same tensor is returned that came in, so that the caller's changes reach both."""

    def forward(self, x):
        return x, self.a(x)


@odd()
class OutputIsBuffer(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(16))

    def forward(self, x):
        self.total.add_(1)
        return self.total, self.a(x)
