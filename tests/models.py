"""Models named for their trait, each with an example input; the contract suites run over all of them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class ResidualConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.body = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.body(x))
        return self.head(x.mean((2, 3)))


class NormWithActivation(nn.BatchNorm2d):
    """A batch norm that does more than its name says."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class ActivatedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 3)
        self.norm = NormWithActivation(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ConvCalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x)))


class SeparableConvolutions(nn.Module):
    """Enough channels beside a large layer, so that convolutions become separable; in every way to call one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.strided = nn.Conv2d(16, 10, 3, stride=2, padding="valid")
        self.dilated = nn.Conv2d(16, 10, (1, 3), dilation=2)
        self.twice = nn.Conv2d(10, 10, 3, padding=1, padding_mode="circular")
        self.sequence = nn.Conv1d(10, 12, 3, padding="same")
        self.volume = nn.Conv3d(12, 9, (1, 2, 2))
        self.head = nn.Linear(9, 2000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = self.strided(x).flatten(2).mean(2) + self.dilated(x).flatten(2).mean(2)
        x = x[:, :, None, None].expand(-1, -1, 4, 4)
        x = self.twice(F.relu(self.twice(x)))
        x = self.sequence(x.flatten(2)).unflatten(2, (1, 4, 4))
        return self.head(self.volume(x).mean((2, 3, 4)))


class ConvolutionOfLargeMean(nn.Conv2d):
    """Its weight's mean outweighs its standard deviation."""

    deviation = 0.1

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.weight, 0.3, self.deviation)


class ConstantConvolution(ConvolutionOfLargeMean):
    deviation = 0.0


class SeparableConvolutionOfLargeMean(nn.Module):
    """One whose mean outweighs its deviation, one that is constant, and one whose weight something else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvolutionOfLargeMean(9, 12, 3)
        self.constant = ConstantConvolution(12, 9, 3, padding=1)
        self.read = nn.Conv2d(9, 9, 3, padding=1)
        self.head = nn.Linear(9, 2000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(self.constant(F.relu(self.conv(x))))
        return self.head(x.mean((2, 3))) + self.read.weight.square().sum()


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(tokens))))


class SharedStorage(nn.Module):
    """Two parameter objects that are the same view of one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = nn.Parameter(self.first.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class SharedModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
        self.blocks = nn.ModuleList([block, nn.Linear(12, 12), block])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class RawParameters(nn.Module):
    """Parameters outside of any layer, in containers too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16) / 4)
        self.listed = nn.ParameterList([torch.randn(16, 16) / 4 for _ in range(2)])
        self.named = nn.ParameterDict({"shift": torch.randn(16)})

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.weight
        for weight in self.listed:
            x = torch.tanh(x @ weight)
        return x + self.named["shift"].view(self.named["shift"].shape[0])


class FunctionalDropout(nn.Module):
    """Reads `self.training` itself, and mixes in a dropout module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 16)
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.first(x)), 0.3, self.training)
        return self.drop(self.second(x))


class AlwaysDropout(nn.Module):
    """Monte Carlo dropout: on in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5, training=True)


class StochasticDepth(nn.Module):
    """Skips a residual branch at random while training, as torchvision's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(16, 16)
        self.drop_path = _DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))


class _DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.empty(x.shape[0], 1).bernoulli_(0.5)
        return x * keep * 2


class BranchesOnMode(nn.Module):
    """Its forward can't be traced as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.auxiliary = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.linear(x)
        return (x, self.auxiliary(x)) if self.training else x


class BranchesOnInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _Branching()
        self.outer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(self.outer(x)))


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positive = nn.Linear(16, 16)
        self.negative = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.positive(x) if x.sum() > 0 else self.negative(x)


class RandomControlFlow(nn.Module):
    """Layer drop: Python's own random numbers decide which layers run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if random.random() < 0.5:
                x = layer(x)
        return x


class NoGradBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(16, 16)
        self.student = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x)
        return self.student(x) - target


class CountsCalls(nn.Module):
    """Changes a buffer by assigning to it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.linear(x) * self.calls


class InPlaceBuffer(nn.Module):
    """Changes a buffer in place; nothing reads the result of that operation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.linear(x)


class Buffers(nn.Module):
    """A persistent and a temporary buffer, and a tensor that is no buffer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("kept", torch.randn(16))
        self.register_buffer("temporary", torch.randn(16), persistent=False)
        self.plain = torch.randn(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.kept) * self.temporary + self.plain


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.recurrent = kind(12, 12, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.recurrent(self.embedding(tokens))
        return self.head(hidden)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x), self.norm(x), x, need_weights=False)[0]


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(30, 16, mode="mean")
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.bag(tokens))


class SparseEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16, sparse=True)
        self.bag = nn.EmbeddingBag(30, 16, sparse=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens).sum(1) + self.bag(tokens)


class MaxNormEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16, max_norm=1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)


class TwoInputs(nn.Module):
    """A bilinear layer and two inputs, one of them with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(8, 8, 8)

    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 2.0) -> dict[str, Tensor]:
        return {"z": self.bilinear(x, x) * scale, "x": x}


class EveryNorm(nn.Module):
    """Norms whose parameters have two dimensions, so that they are hashed; they start as ones and zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.layer_norm = nn.LayerNorm((4, 8))
        self.rms_norm = nn.RMSNorm((4, 8))
        self.group_norm = nn.GroupNorm(2, 4)
        self.prelu = nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x).unflatten(-1, (4, 8))
        return self.prelu(self.group_norm(self.rms_norm(self.layer_norm(x))))


class MixedTypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.single_layer = nn.Linear(16, 16)
        self.double_layer = nn.Linear(16, 16, dtype=torch.float64)
        self.brain_layer = nn.Linear(16, 16, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.single_layer(x)
        return self.double_layer(x.double()), self.brain_layer(x.to(self.brain_layer.weight.dtype))


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Linear(16, 16))
        self.spectral = parametrizations.spectral_norm(nn.Conv1d(1, 8, 3, padding=1))
        self.orthogonal = parametrizations.orthogonal(nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.orthogonal(self.spectral(self.normed(x).unsqueeze(1)))


class HookedWeightNorm(nn.Module):
    """The older weight and spectral norms, which work by forward hooks."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.normed = nn.utils.weight_norm(nn.Linear(16, 16))
        self.spectral = nn.utils.spectral_norm(nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.spectral(self.normed(x))


class LowRankAdapter(nn.Module):
    """A frozen layer with a trained correction that starts at zero (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(16, 16).requires_grad_(False)
        self.down = nn.Linear(16, 4, bias=False)
        self.up = nn.Linear(4, 16, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) * 2


class FrozenBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(16, 32).requires_grad_(False)
        self.head = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class UnusedParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.forgotten = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class ReadsShapes(nn.Module):
    """Uses shape, type and device of its weight, as models do that adapt their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight.dim() == 2
        assert self.weight.size(-1) == self.weight.shape[0] == len(self.weight)
        return (x.to(self.weight.dtype) @ self.weight) / self.weight.numel() ** 0.5


class StarArguments(nn.Module):
    """Collects arguments and branches on them, so that it stays opaque as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor, *others: Tensor, **options: Tensor) -> Tensor:
        for other in others:
            x = x + other
        return self.linear(x) * options.get("scale", 1.0)


class KeepsActivation(nn.Module):
    """Leaves an activation behind on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.linear(x)
        return self.last


def _vectors() -> tuple[Tensor, ...]:
    return (torch.randn(6, 16),)


def _images(channels: int, side: int = 6) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(3, channels, side, side),)


def _tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 20, (3, 5)),)


def _layer(layer: nn.Module, *shape: int) -> tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]:
    return lambda: nn.Sequential(layer), lambda: (torch.randn(*shape),)


# Name -> how to build the model, how to make example inputs.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "ResidualConvNet": (ResidualConvNet, _images(3)),
    "ActivatedNorm": (ActivatedNorm, _images(8)),
    "ConvCalledTwice": (ConvCalledTwice, _images(8)),
    "SeparableConvolutions": (SeparableConvolutions, _images(12)),
    "SeparableConvolutionOfLargeMean": (SeparableConvolutionOfLargeMean, _images(9)),
    "TiedEmbedding": (TiedEmbedding, _tokens),
    "SharedStorage": (SharedStorage, _vectors),
    "SharedModule": (SharedModule, lambda: (torch.randn(6, 12),)),
    "RawParameters": (RawParameters, _vectors),
    "FunctionalDropout": (FunctionalDropout, _vectors),
    "AlwaysDropout": (AlwaysDropout, _vectors),
    "StochasticDepth": (StochasticDepth, _vectors),
    "BranchesOnMode": (BranchesOnMode, _vectors),
    "BranchesOnInput": (BranchesOnInput, _vectors),
    "RandomControlFlow": (RandomControlFlow, lambda: (torch.randn(6, 12),)),
    "NoGradBlock": (NoGradBlock, _vectors),
    "CountsCalls": (CountsCalls, _vectors),
    "InPlaceBuffer": (InPlaceBuffer, _vectors),
    "Buffers": (Buffers, _vectors),
    "RNN": (lambda: Recurrent(nn.RNN), _tokens),
    "LSTM": (lambda: Recurrent(nn.LSTM), _tokens),
    "GRU": (lambda: Recurrent(nn.GRU), _tokens),
    "BareLSTM": (lambda: nn.LSTM(12, 12), lambda: (torch.randn(4, 3, 12),)),
    "ProjectedLSTM": (lambda: nn.LSTM(12, 12, proj_size=6), lambda: (torch.randn(4, 3, 12),)),
    "LSTMCell": (lambda: nn.LSTMCell(12, 12), lambda: (torch.randn(3, 12),)),
    "Attention": (Attention, lambda: (torch.randn(3, 5, 16),)),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        lambda: (torch.randn(3, 5, 16),),
    ),
    "BagOfWords": (BagOfWords, _tokens),
    "SparseEmbedding": (SparseEmbedding, _tokens),
    "MaxNormEmbedding": (MaxNormEmbedding, _tokens),
    "TwoInputs": (TwoInputs, lambda: (torch.randn(3, 8),)),
    "EveryNorm": (EveryNorm, lambda: (torch.randn(3, 32),)),
    "MixedTypes": (MixedTypes, _vectors),
    "WeightNorm": (WeightNorm, _vectors),
    "HookedWeightNorm": (HookedWeightNorm, _vectors),
    "LowRankAdapter": (LowRankAdapter, _vectors),
    "FrozenBackbone": (FrozenBackbone, _vectors),
    "UnusedParameter": (UnusedParameter, _vectors),
    "ReadsShapes": (ReadsShapes, _vectors),
    "StarArguments": (StarArguments, lambda: (torch.randn(6, 16), torch.randn(6, 16))),
    "KeepsActivation": (KeepsActivation, _vectors),
    "Conv1d": _layer(nn.Conv1d(8, 12, 3, stride=2), 3, 8, 9),
    "Conv2dReflect": _layer(nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect"), 3, 8, 6, 6),
    "Conv2dSamePadding": _layer(nn.Conv2d(8, 12, 3, padding="same", groups=4), 3, 8, 6, 6),
    "Conv3d": _layer(nn.Conv3d(4, 6, 3), 2, 4, 5, 5, 5),
    "ConvTranspose1d": _layer(nn.ConvTranspose1d(8, 12, 3, stride=2), 3, 8, 5),
    "ConvTranspose2d": _layer(nn.ConvTranspose2d(8, 12, 3, output_padding=1, stride=2), 3, 8, 5, 5),
    "ConvTranspose3d": _layer(nn.ConvTranspose3d(4, 6, 3), 2, 4, 3, 3, 3),
}
