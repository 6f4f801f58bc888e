"""Hypothesis strategies: random plans and random models.

`random_models()` draws a random directed acyclic graph of layers over vectors of one width: residual sums, layers
used again, tied and raw parameters, dropout by module and by `self.training`, opaque layers, and types that differ
from layer to layer. Each model comes as a `(model, input)` pair in a drawn mode.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from fxhash.smh.parameter_plan import ParameterPlan

STEPS = (
    "linear",
    "linear in double precision",
    "linear in bfloat16",
    "raw parameter",
    "weight norm",
    "bilinear",
    "convolution",
    "recurrent",
    "attention",
    "layer norm",
    "batch norm",
    "dropout module",
    "functional dropout",
    "use again",
    "tie",
    "residual",
)


class RandomDag(nn.Module):
    """Applies drawn steps to drawn earlier values; the mean of all values is the output."""

    def __init__(self, width: int, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.width = width
        self.steps = steps
        self.layers = nn.ModuleList(self._layer(kind) for kind, _, _ in steps)
        self.raw = nn.ParameterList(torch.randn(width, width) / width**0.5 for _ in steps)

    def _layer(self, kind: str) -> nn.Module:
        width = self.width
        layers: dict[str, nn.Module] = {
            "linear in double precision": nn.Linear(width, width, dtype=torch.float64),
            "linear in bfloat16": nn.Linear(width, width, dtype=torch.bfloat16),
            "weight norm": weight_norm(nn.Linear(width, width)),
            "bilinear": nn.Bilinear(width, width, width),
            "convolution": nn.Conv1d(1, 1, 3, padding=1),
            "recurrent": nn.GRU(width, width, batch_first=True),
            "attention": nn.MultiheadAttention(width, 1, batch_first=True),
            "layer norm": nn.LayerNorm(width),
            "batch norm": nn.BatchNorm1d(width),
            "dropout module": nn.Dropout(0.2),
        }
        return layers.get(kind, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for index, (kind, first, second) in enumerate(self.steps):
            one, other = values[first % len(values)], values[second % len(values)]
            values.append(self._apply_step(kind, index, one, other))
        return torch.stack(values).mean(0)

    def _apply_step(self, kind: str, index: int, one: Tensor, other: Tensor) -> Tensor:
        layer = self.layers[index]
        if kind == "linear in double precision":
            return layer(one.double()).float()
        if kind == "linear in bfloat16":
            return layer(one.bfloat16()).float()
        if kind == "raw parameter":
            return one @ self.raw[index]
        if kind == "bilinear":
            return layer(one, other)
        if kind == "convolution":
            return layer(one.unsqueeze(1)).squeeze(1)
        if kind == "recurrent":
            return layer(one.unsqueeze(0))[0].squeeze(0)
        if kind == "attention":
            return layer(one, other, other)[0]
        if kind == "functional dropout":
            return F.dropout(one, 0.2, self.training)
        if kind == "use again":
            return torch.tanh(layer(layer(one)))
        if kind == "tie":
            return F.linear(layer(one), layer.weight)
        if kind == "residual":
            return one + other
        return layer(one)


@st.composite
def random_models(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A random model in a random mode, with an input for it."""
    width = draw(st.integers(8, 16))
    step = st.tuples(st.sampled_from(STEPS), st.integers(0, 7), st.integers(0, 7))
    steps = draw(st.lists(step, min_size=1, max_size=6))
    torch.manual_seed(draw(st.integers(0, 1000)))
    model = RandomDag(width, [("linear", 0, 0), *steps])
    return model.train(draw(st.booleans())), torch.randn(5, width)


@st.composite
def parameter_descriptions(draw: st.DrawFn) -> list[ParameterPlan]:
    """Parameters of a model that does not exist: shapes, types and reasons to stay dense, at least one hashed."""
    count = draw(st.integers(1, 20))
    described = []
    for index in range(count):
        shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
        dense_because = "" if index == 0 else draw(st.sampled_from(["", "", "", "excluded", "frozen"]))
        described.append(
            ParameterPlan(
                fqn=f"layer{index}.weight",
                shape=shape,
                dtype=draw(st.sampled_from(["float32", "float64", "bfloat16", "float16"])),
                trainable=dense_because != "frozen",
                dense_because=dense_because,
                aliases=draw(st.sampled_from([(), (f"alias{index}.weight",)])),
            )
        )
    return described


fractions = st.floats(0.001, 1.0)
aspects = st.sampled_from([0.25, 1.0, 1.0, 4.0, 16.0])
