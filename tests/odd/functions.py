"""Functions of a model's own file that a trace can't follow, each with what it reaches, changes or keeps."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
from torch import Tensor, nn

from tests.odd.registry import Two, odd

LAYER = nn.Linear(16, 16)
HOLDER = type("Holder", (), {"layer": LAYER})()
PAST: list[float] = []
SCALES = {"positive": 1.1, "negative": 0.9}
COUNT = 0
LIMIT = 0.0


def _chosen(x: Any) -> bool:
    return bool(x.sum() > LIMIT)


# Those that reach nothing, which one node may call.


@torch.autocast("cpu", enabled=False)
def halves_swapped(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def dropped(x, p, training):
    if not training:
        return x
    kept = 1 - p
    kept += torch.rand([x.shape[0], 1], dtype=x.dtype, device=x.device)
    return x / (1 - p) * kept.floor()


def scaled_by_sign(x, scales=(1.1, 0.9)):
    return x * scales[0] if _chosen(x) else x * scales[1]


def drawn(x):
    return x * random.choice([0.9, 1.1]) if x.shape[0] > 1 else x


def doubled_in_place(x):
    if _chosen(x):
        x *= 2
    return x


def both(x):
    return (x, x * 2) if _chosen(x) else (x * 2, x)


def maybe_none(x):
    return x * 1.1 if _chosen(x) else None


@odd()
class FunctionOffAutocast(Two):
    def forward(self, x):
        return self.b(halves_swapped(self.a(x)))


@odd()
class FunctionByMode(Two):
    def forward(self, x):
        return self.b(dropped(self.a(x), p=0.5, training=self.training))


@odd()
class FunctionBySign(Two):
    def forward(self, x):
        return self.b(scaled_by_sign(scaled_by_sign(self.a(x)), scales=(1.2, 0.8)))


@odd()
class FunctionDraws(Two):
    def forward(self, x):
        return self.b(drawn(self.a(x))) + torch.rand_like(x)


@odd()
class FunctionChangesAValue(Two):
    def forward(self, x):
        h = self.a(x)
        doubled_in_place(h)
        return self.b(h)


@odd()
class FunctionChangesTheInput(Two):
    def forward(self, x):
        doubled_in_place(x)
        return self.b(self.a(x))


@odd()
class FunctionGivesTwo(Two):
    def forward(self, x):
        first, second = both(self.a(x))
        return self.b(first) - second


# Those that do, and calls that hand them more than values.


def by_global_layer(x):
    return LAYER(x) if _chosen(x) else x


def by_object(x):
    return HOLDER.layer(x) if _chosen(x) else x


def by_dictionary(x):
    return x * (SCALES["positive"] if _chosen(x) else SCALES["negative"])


def through_another(x):
    return by_global_layer(x) if _chosen(x) else x


def counts(x):
    global COUNT
    COUNT += 1
    return x * COUNT if _chosen(x) else x


def remembers(x):
    PAST.append(1.0)
    return x * len(PAST) if _chosen(x) else x


def counts_in_attribute(x):
    counts_in_attribute.calls += 1  # type: ignore[attr-defined]
    return x * counts_in_attribute.calls if _chosen(x) else x  # type: ignore[attr-defined]


counts_in_attribute.calls = 0  # type: ignore[attr-defined]


@functools.lru_cache
def cached_scale(sign):
    return 1.1 if sign else 0.9


def by_cache(x):
    return x * cached_scale(_chosen(x))


def by_default(x, layer=LAYER):
    return layer(x) if _chosen(x) else x


def weighted(function):
    @functools.wraps(function)
    def run(x):
        return LAYER(function(x)) if _chosen(x) else function(x)

    return run


@weighted
def decorated(x):
    return x * 2


def through_getattr(x):
    return getattr(through_getattr, "__globals__")["LAYER"](x) if _chosen(x) else x  # noqa: B009


def appended(x, values):
    values.append(x if _chosen(x) else x * 2)
    return x


def called(layer, x):
    return layer(x) if _chosen(x) else x


def _reset() -> None:
    global COUNT
    COUNT = 0
    counts_in_attribute.calls = 0  # type: ignore[attr-defined]
    PAST.clear()
    cached_scale.cache_clear()
    with torch.no_grad():
        for index, parameter in enumerate(LAYER.parameters()):
            parameter.copy_(torch.linspace(-0.2, 0.3 + index, parameter.numel()).view_as(parameter))


def _calls(function: Any) -> Any:
    """An odd model that calls a function."""

    def forward(self: Two, x: Tensor) -> Tensor:
        result: Tensor = self.b(function(self.a(x)))
        return result

    name = f"Function_{function.__name__}"
    return odd(reset=_reset)(type(name, (Two,), {"forward": forward, "__module__": __name__}))


REACHING = [
    *(by_global_layer, by_object, by_dictionary, through_another, counts, remembers, counts_in_attribute, by_cache),
    *(by_default, decorated, through_getattr),
]
for _function in REACHING:
    globals()[f"Function_{_function.__name__}"] = _calls(_function)


@odd(reset=_reset)
class FunctionGivesNone(Two):
    def forward(self, x):
        h = self.a(x)
        found = maybe_none(h)
        return self.b(h if found is None else found)


@odd(reset=_reset)
class FunctionChangesAWeight(Two):
    def forward(self, x):
        with torch.no_grad():
            doubled_in_place(self.a.weight)
        return self.b(self.a(x))


@odd(reset=_reset)
class FunctionGetsAViewOfAWeight(Two):
    def forward(self, x):
        return self.b(self.a(x)) + doubled_in_place(self.a.weight.detach().t()).sum() * 0.01


@odd(reset=_reset)
class FunctionReturnsAWeight(Two):
    def forward(self, x):
        return self.b(self.a(x)) @ scaled_by_sign(self.a.weight)


@odd(reset=_reset)
class FunctionFillsAList(Two):
    def forward(self, x):
        values: list[Tensor] = []
        h = appended(self.a(x), values)
        return self.b(h + values[0])


@odd(reset=_reset)
class FunctionCallsALayer(Two):
    def forward(self, x):
        return self.b(called(self.a, x))


@odd(reset=_reset)
class FunctionOfItsOwn(Two):
    def forward(self, x):
        layer = self.a

        def chosen(h):
            return layer(h) if _chosen(h) else h

        return self.b(chosen(self.a(x)))
