"""Hypothesis strategy: modules whose forward is put together of odd statements, as source text.

`drawn_models()` draws an `Odd`. Its source is where `inspect.getsource` finds it in two cases of three, and nowhere in
the third, as of a class that is made in a notebook or by `exec`.
"""

from __future__ import annotations

import itertools
import linecache
import textwrap
from typing import Any

from hypothesis import strategies as st

from tests.odd.registry import Odd, optional

# Over the variables x (the input), m (maybe None), h and y, and the attributes that `_SOURCE` sets. Factors are near 1,
# so that statements in a row don't carry rounding far.
STATEMENTS = (
    # Modes.
    "h = F.dropout(h, 0.5, self.training)",
    "h = F.dropout(h, 0.5, self.d.training)",
    "h = h * (0.5 if self.training else 1.5)",
    "h = h * (0.5 if self.training is True else 1.5)",
    "h = h * (0.5 if self.b.training else 1.5)",
    "h = self.d(h)",
    "self.d.eval()\nh = self.d(h)\nself.d.train()",
    "self.d.p = 0.9",
    # None and identity.
    "h = h * (0.5 if m is None else 1.5)",
    "h = h if m is None else h + m",
    "y = y if isinstance(m, Tensor) else y * 1.5",
    "h = h * sum(0.7 for each in (x, m) if each is not None)",
    "h = h * (0.5 if h is y else 1.5)",
    "h = h * {None: 0.5}.get(m, 1.5)",
    "match m:\n    case None:\n        h = h * 1.5\n    case _:\n        h = h * 0.7",
    # State.
    "self.n += 1\nh = h * self.n",
    'self.counts["n"] += 1\nh = h * self.counts["n"]',
    "self.past.append(1)\nh = h + 0.3 * len(self.past)",
    "if self.h is None:\n    self.h = h.detach()\nelse:\n    h = h + self.h",
    "self.h = h.detach()",
    "h = h if self.h is None else h * 1.5",
    "self.total += h.detach().mean(0)\nh = h + self.total",
    "h = self.norm(h)",
    "h = h * next(self.counter)",
    # Random numbers.
    "h = h * random.random()",
    "h = h * self.random.random()",
    "h = h + torch.rand_like(h)",
    # Aliases.
    "g = h\ng += 1",
    "h += 1",
    "x += 1",
    "y = h\ny *= 1.5",
    "h.view(-1).mul_(1.5)",
    "F.relu(h, inplace=True)",
    "y = x",
    "h, y = y, h",
    # Errors and what a forward asks of the process.
    "try:\n    h = h * float(h.mean())\nexcept Exception:\n    h = h * 0.7",
    "try:\n    y = y * len(h)\nexcept BaseException:\n    y = y * 0.7",
    "if h.mean() > 0:\n    h = h * 1.5",
    "h = h * (0.5 if torch.is_grad_enabled() else 1.5)",
    "with torch.no_grad():\n    y = self.a(x)",
    # Weights.
    "h = F.linear(h, self.ws[0])",
    "h = self.run(h)",
    'h = self.layers["b"](h)',
    "h = h + sum(p.sum() for p in self.parameters()) * 0.1",
    "h = h + parameters_to_vector(self.parameters()).mean()",
    "with torch.no_grad():\n    self.b.weight.clamp_(-0.1, 0.1)",
    "self.b.weight.data.mul_(0.5)",
    "h = self.b.forward(h)",
    "h = h + sum(each(x) for each in self.children() if type(each) is nn.Linear)",
    # Nothing odd.
    "h = torch.tanh(self.a(h))",
    "h = self.b(h).relu()",
    "y = y + h",
)

_BLOCKS = (
    "{}",
    "{}",
    "{}",
    "if m is not None:\n    {}",
    "if self.training:\n    {}",
    "for _ in range(2):\n    {}",
    "try:\n    {}\nexcept Exception:\n    pass",
    "with torch.no_grad():\n    {}",
)

_RESULTS = ("h", "h, y", '{"h": h, "y": y}', "self.b(torch.tanh(h))", "h + y")

_SOURCE = """
class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16)
        self.b = nn.Linear(16, 16)
        self.d = nn.Dropout(0.5)
        self.norm = nn.LayerNorm(16)
        self.register_buffer("total", torch.zeros(16))
        self.n = 0
        self.h = None
{attributes}


class Inner(Base):
    def forward(self, x, m=None):
        h = y = x
{inner}
        return h


class Drawn(Base):
    def __init__(self):
        super().__init__()
        self.child = Inner()

    def forward(self, x, m=None):
        h = self.a(x)
        y = x * 1
{outer}
        return {result}
"""

# Set only where a statement reads them: some can't be copied, which would make every model an error.
_ATTRIBUTES = {
    "self.counts": 'self.counts = {"n": 0}',
    "self.past": "self.past = []",
    "self.counter": "self.counter = itertools.count(1)",
    "self.random": "self.random = random.Random(5)",
    "self.ws": "self.ws = [self.b.weight]",
    "self.run": "self.run = lambda value: self.b(value)",
    "self.layers": 'self.layers = {"b": self.b}',
}

_IMPORTS = """
import itertools, random
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
"""

_numbers = itertools.count()


@st.composite
def _statements(draw: st.DrawFn, most: int) -> str:
    lines = []
    for _ in range(draw(st.integers(1, most))):
        block, statement = draw(st.sampled_from(_BLOCKS)), draw(st.sampled_from(STATEMENTS))
        indent = " " * (len(block[: block.index("{}")].rpartition("\n")[2]))
        lines.append(block.format(statement.replace("\n", f"\n{indent}")))
    return "\n".join(lines)


@st.composite
def drawn_sources(draw: st.DrawFn) -> tuple[str, bool]:
    """The source of a model named `Drawn`, and whether it is to be found where Python looks for it."""
    inner, outer = draw(_statements(2)), draw(_statements(4))
    if draw(st.booleans()):
        outer += "\nh = self.child(h, m)"
    body = inner + outer
    attributes = "\n".join(line for name, line in _ATTRIBUTES.items() if name in body)
    source = _SOURCE.format(
        attributes=textwrap.indent(attributes, " " * 8),
        inner=textwrap.indent(inner, " " * 8),
        outer=textwrap.indent(outer, " " * 8),
        result=draw(st.sampled_from(_RESULTS)),
    )
    return source, draw(st.sampled_from([True, True, False]))


def executed(source: str, found: bool) -> Odd:
    """The model of a drawn source."""
    name = f"<drawn {next(_numbers)}>"
    namespace: dict[str, Any] = {"__name__": "drawn"}
    exec(_IMPORTS, namespace)
    exec(compile(source, name, "exec"), namespace)
    if found:
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    return Odd(namespace["Drawn"], optional, lambda: None, None, tolerance=1e-3)
