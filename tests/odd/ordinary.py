"""Ordinary models: what a trace must follow, so that not everything is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.odd import modes, numbers
from tests.odd.registry import Two

ORDINARY: dict[str, tuple[type[nn.Module], Callable[[], tuple[Any, ...]]]] = {}


def _vectors() -> tuple[Any, ...]:
    return (torch.randn(4, 16),)


def ordinary(inputs: Callable[[], tuple[Any, ...]] = _vectors) -> Callable[[Any], Any]:
    def register(kind: Any) -> Any:
        ORDINARY[kind.__name__] = kind, inputs
        return kind

    return register


class _Residual(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.downsample = nn.Sequential(nn.Conv2d(8, 8, 1, stride), nn.BatchNorm2d(8)) if stride > 1 else None

    def forward(self, x):
        identity = x
        out = self.relu(self.norm(self.first(x)))
        out = self.norm2(self.second(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


@ordinary(lambda: (torch.randn(2, 3, 8, 8),))
class ResidualNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.Sequential(_Residual(1), _Residual(2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.flatten(self.pool(self.layers(self.stem(x))), 1))


@ordinary()
class DropoutByMode(Two):
    def forward(self, x):
        return self.b(F.dropout(F.relu(self.a(x)), p=0.5, training=self.training))


@ordinary()
class DropoutModule(Two):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.b(self.drop(torch.relu(self.a(x))))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@ordinary()
class OptionalMaskPassedOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = _Attention()
        self.norm = nn.LayerNorm(16)

    def forward(self, x, mask=None):
        return x + self.attention(self.norm(x), mask)


@ordinary()
class ReadsBuffer(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("positions", torch.randn(4, 16))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x):
        return self.b(self.a(x + self.positions) * self.scale)


@ordinary()
class AddsToFreshValue(Two):
    def forward(self, x):
        h = self.a(x)
        h += x
        h = self.b(h)
        h *= 2
        return h


@ordinary(lambda: (torch.randint(0, 16, (4, 5)),))
class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 16)
        self.head = nn.Linear(16, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


@ordinary()
class OptionalNorm(Two):
    def __init__(self, norm: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(16) if norm else None

    def forward(self, x):
        h = self.a(x)
        if self.norm is not None:
            h = self.norm(h)
        return self.b(h)


@ordinary()
class OptionalNormThatIsThere(OptionalNorm):
    def __init__(self):
        super().__init__(norm=True)


@ordinary()
class OptionalAttribute(Two):
    def forward(self, x):
        h = self.a(x)
        if getattr(self, "extra", None) is not None:
            h = self.extra(h)
        return self.b(h)


@ordinary()
class LoopsOverModuleList(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.named = nn.ModuleDict({"p": nn.Linear(16, 16), "q": nn.Linear(16, 16)})

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == 0 else F.gelu(layer(x))
        for layer in self.named.values():
            x = layer(x)
        return self.layers[0](x) / len(self.layers)


@ordinary()
class ReturnsDict(Two):
    def forward(self, x):
        h = self.a(x)
        return {"hidden": h, "out": self.b(h)}


@ordinary()
class ReturnsTuple(Two):
    def forward(self, x):
        h = self.a(x)
        return h, [self.b(h), None]


@ordinary()
class CallsHelper(Two):
    def __init__(self):
        super().__init__()
        self.width, self.scales, self.kind = 16, (1.0, 2.0), "gelu"

    def activated(self, x):
        return {"gelu": F.gelu, "relu": F.relu}[self.kind](x)

    def forward(self, x):
        h = self.activated(self.a(x)).view(-1, self.width)
        return self.b(h) * self.scales[1] if self.scales is not None else h


@ordinary()
class BiasMayBeNone(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16, bias=False)
        self.gain = nn.Parameter(torch.ones(16))
        self.register_parameter("bias", None)

    def forward(self, x):
        h = F.linear(x, self.a.weight, self.a.bias) * self.gain
        return h if self.bias is None else h + self.bias


@ordinary()
class SizesOfInput(Two):
    def forward(self, x):
        n, width = x.shape
        return self.b(self.a(x).view(n, 2, width // 2).transpose(1, 2).reshape(x.size(0), -1))


@ordinary()
class ReluInPlaceOnFreshValue(Two):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.b(F.relu(self.relu(self.a(x)), inplace=True))


@ordinary()
class NormsInBothModes(Two):
    def __init__(self):
        super().__init__()
        self.norm, self.layer_norm = nn.BatchNorm1d(16), nn.LayerNorm(16)

    def forward(self, x):
        return self.b(self.layer_norm(self.norm(self.a(x))))


@ordinary()
class AsksForSlices(Two):
    def forward(self, x):
        first, rest = self.a(x)[:, :8], self.b(x)[..., 8:]
        return torch.cat([first, rest], 1) if first is not None and rest is not None else first


@ordinary()
class AsksForRowsByIndex(Two):
    def forward(self, x):
        rows = self.a(x)[torch.arange(x.shape[0], device=x.device)[:, None], torch.argsort(x, -1)]
        return self.b(rows) if rows is not None else x


class _Angles(nn.Module):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        angles = torch.arange(x.shape[-1], device=x.device)
        return angles.sin(), angles.cos()


class _Doubled(nn.Module):
    def forward(self, x):
        doubled = x * 2
        if x.ndim != 2:
            raise ValueError("no matrix")
        else:
            return doubled


@ordinary()
class AsksWhatModulesGive(Two):
    def __init__(self):
        super().__init__()
        self.doubled = _Doubled()
        self.angle = _Angles()

    def forward(self, x):
        angles, doubled = self.angle(x), self.doubled(x)
        if angles is not None and doubled is not None:
            x = doubled * angles[0]
        return self.b(self.a(x))


for _kind in (
    *(numbers.NumberOfSize, numbers.NumberOfValue, numbers.LengthOfInput, numbers.LargestAndSmallestSize),
    *(numbers.RoundsSize, numbers.LimitsOfType, numbers.SizesAsArguments, numbers.ChangesAFreshTensorOfSizes),
    *(numbers.DrawsOnlyIfAsked, numbers.LengthOfListOfValues),
    *(modes.ModeChoosesNumber, modes.ModeOfTwoModulesChoosesNumbers, modes.ModeChoosesSignOfZero),
    *(modes.ModeChoosesPartOfSlice, modes.ModeOfEachModuleInTurn),
):
    ordinary()(_kind)


def _is_compiling():
    try:
        return torch.compiler.is_compiling()
    except Exception:
        return False


@ordinary()
class AsksTorchInATry(Two):
    def forward(self, x):
        return self.b(self.a(x)) if not _is_compiling() else x
