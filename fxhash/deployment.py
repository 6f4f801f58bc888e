"""The plan of a deployed model: how each use of a weight is computed, when a weight exists, where, and how large."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx

from fxhash.costs import Costs
from fxhash.errors import MemoryBudgetError, PlanError

METHODS = ("in turn", "generate", "keep")


@dataclass(frozen=True)
class LoweredUse:
    """How one use of a hashed parameter is computed in a deployed model.

    Attributes:
        node: name of the graph node that uses it.
        fqn: the parameter's fully qualified name.
        method: `"in turn"` (the layer multiplies by the factors, no weight is built), `"by size"` (in turn for small
            inputs, generated for large ones), `"generate"`, or `"keep"` (generated once, when the model is lowered).
        weight_bytes: size of the weight itself.
        costs: multiply-adds of each way to compute this use.
        memory_bytes: memory that the generated weight takes while it exists; zero where none is built.
        live: when the generated weight exists: first and last position in the order of the graph's nodes.
        until: name of the last node that reads it, or what may share its memory.
        slot: index of the scratch slot that it is generated into; None if it has memory of its own.
        folded_norm: name of the batch norm node that was folded in; empty if none.
        inside: path of the module inside of the node's part that does it when it is called; None for the node itself.
    """

    node: str
    fqn: str
    method: str
    weight_bytes: int
    costs: Costs
    memory_bytes: int = 0
    live: tuple[int, int] = (0, 0)
    until: str = ""
    slot: int | None = None
    folded_norm: str = ""
    inside: str | None = None


@dataclass(frozen=True)
class DeploymentPlan:
    """How each weight of a deployed model comes about, in the order of use.

    Attributes:
        uses: one entry for each use of a hashed parameter.
        slot_bytes: size of each scratch slot, which all weights that are generated into it share.
        peak_bytes: most bytes of weights at any time: kept ones, scratch slots, and those with memory of their own.
        factor_bytes: bytes of the factors.
    """

    uses: tuple[LoweredUse, ...]
    slot_bytes: tuple[int, ...]
    peak_bytes: int
    factor_bytes: int

    @property
    def kept_bytes(self) -> int:
        """Bytes of the weights that are kept."""
        return kept_bytes(self.uses)

    def __str__(self) -> str:
        rows = [
            ("use", "parameter", "method", "exists until", "slot", "kB", "generate", "in turn", "dense", "norm folded")
        ]
        for use in self.uses:
            live = {"in turn": "never", "keep": "always"}.get(use.method, use.until)
            slot = "" if use.slot is None else str(use.slot)
            size = f"{use.memory_bytes / 1e3:,.1f}" if use.memory_bytes else ""
            in_turn = "" if use.costs.in_turn is None else f"{use.costs.in_turn / 1e3:,.1f}"
            work = (f"{use.costs.generate / 1e3:,.1f}", in_turn, f"{use.costs.dense / 1e3:,.1f}")
            rows.append((use.node, use.fqn, use.method, live, slot, size, *work, use.folded_norm))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        slots = ", ".join(f"{size / 1e3:,.1f} kB" for size in self.slot_bytes)
        return "\n".join(
            [
                *table,
                "",
                "generate: thousands of multiply-adds, once a call",
                "in turn, dense: thousands of multiply-adds for each position (row, pixel or index)",
                "",
                f"factors: {self.factor_bytes / 1e3:,.1f} kB",
                f"scratch slots: {slots or 'none'}",
                f"weights, scratch included: at most {self.peak_bytes / 1e3:,.1f} kB at a time",
            ]
        )


def color_slots(ranges: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> dict[str, int]:
    """Assign values to scratch slots, such that no two values of one slot are live at the same time.

    Colours the interval graph of the live ranges. In the order of their starts that takes the fewest slots; in the
    order of size, slots often add up to less. The better one in bytes is taken.

    Args:
        ranges: first and last position at which each value is live.
        sizes: bytes of each value; a slot is as large as its largest.

    Returns:
        The slot of each value, counted from 0, the largest slot first.

    Example:
        >>> color_slots({"a": (0, 2), "b": (2, 3), "c": (3, 5)}, {"a": 10, "b": 1, "c": 4})
        {'a': 0, 'b': 1, 'c': 0}
    """
    interference = nx.Graph()
    live: list[str] = []
    by_start = sorted(ranges, key=lambda value: (ranges[value], value))
    by_size = sorted(ranges, key=lambda value: (-sizes[value], ranges[value], value))
    for value in by_start:
        live = [other for other in live if ranges[other][1] >= ranges[value][0]]
        interference.add_node(value)
        interference.add_edges_from((value, other) for other in live)
        live.append(value)
    colorings = [nx.greedy_color(interference, strategy=lambda *_, order=order: order) for order in (by_start, by_size)]
    coloring = min(colorings, key=lambda coloring: sum(slot_sizes(coloring, sizes)))
    unordered = slot_sizes(coloring, sizes)
    rank = {slot: index for index, slot in enumerate(sorted(range(len(unordered)), key=lambda slot: -unordered[slot]))}
    return {value: rank[coloring[value]] for value in ranges}


def slot_sizes(slots: Mapping[str, int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The size of each slot: that of its largest value."""
    largest = [0] * len({*slots.values()})
    for value, slot in slots.items():
        largest[slot] = max(largest[slot], sizes[value])
    return tuple(largest)


def kept_bytes(uses: Sequence[LoweredUse]) -> int:
    """Bytes of the weights that are kept, each counted once."""
    return sum({use.fqn: use.weight_bytes for use in uses if use.method == "keep"}.values())


def peak_of(uses: Sequence[LoweredUse], slot_bytes: Sequence[int]) -> int:
    """Most bytes of weights at any time, for uses whose slots have these sizes."""
    changes: dict[int, int] = {}
    inside: dict[str, list[LoweredUse]] = {}
    for use in uses:
        if use.inside is not None:
            inside.setdefault(use.node, []).append(use)
    within = [replace(group[0], method="generate", memory_bytes=_most_inside(group)) for group in inside.values()]
    for use in (*(use for use in uses if use.inside is None), *within):
        if use.slot is None and use.method != "keep":
            first, last = use.live
            changes[first] = changes.get(first, 0) + use.memory_bytes
            changes[last + 1] = changes.get(last + 1, 0) - use.memory_bytes
    now = most = 0
    for position in sorted(changes):
        now += changes[position]
        most = max(most, now)
    return kept_bytes(uses) + sum(slot_bytes) + most


def _most_inside(uses: Sequence[LoweredUse]) -> int:
    """Most bytes of weights at a time inside of one part: those of a module and of the modules around it."""
    sizes: dict[str, int] = {}
    for use in uses:
        if use.method != "keep" and use.inside is not None:
            sizes[use.inside] = sizes.get(use.inside, 0) + use.memory_bytes
    return max((sum(sizes.get(caller, 0) for caller in _prefixes(path)) for path in sizes), default=0)


def _prefixes(path: str) -> list[str]:
    atoms = path.split(".")
    return [".".join(atoms[:count]) for count in range(1, len(atoms) + 1)]


def choose_kept(plan: DeploymentPlan, budget: int, candidates: Collection[str]) -> frozenset[str]:
    """The parameters to generate once and keep within a budget of bytes: those that save most work a byte first.

    Args:
        plan: how the weights come about if none of `candidates` is kept.
        budget: most bytes of weights at any time.
        candidates: names of parameters that may be kept.

    Raises:
        MemoryBudgetError: if the budget is less than what generating on demand takes; it names the least.
    """
    if budget < plan.peak_bytes:
        raise MemoryBudgetError(
            f"memory_budget={budget:,} bytes is less than the {plan.peak_bytes:,} bytes that weights take while they "
            f"are in use: give {plan.peak_bytes} or more, or 0 to generate every weight on demand",
            plan.peak_bytes,
        )
    saved: dict[str, int] = {}
    size: dict[str, int] = {}
    for use in plan.uses:
        if use.fqn in candidates:
            saved[use.fqn] = saved.get(use.fqn, 0) + use.costs.saved_by_keeping(use.method)
            size[use.fqn] = use.weight_bytes
    worthwhile = [fqn for fqn in saved if saved[fqn]]
    kept: set[str] = set()
    total = 0
    for fqn in sorted(worthwhile, key=lambda fqn: (-saved[fqn] / size[fqn], -size[fqn], fqn)):
        if total + size[fqn] + plan.peak_bytes <= budget or _peak_if_kept(plan, kept | {fqn}, budget) <= budget:
            kept.add(fqn)
            total += size[fqn]
    return frozenset(kept)


def _peak_if_kept(plan: DeploymentPlan, kept: Collection[str], budget: int) -> int:
    """What the peak would be; only a lower bound where the kept weights alone are over the budget."""
    uses = [replace(use, method="keep", slot=None) if use.fqn in kept else use for use in plan.uses]
    at_least = kept_bytes(uses)
    return at_least if at_least > budget else peak_of(*assign_slots(uses))


def assign_slots(uses: Sequence[LoweredUse]) -> tuple[tuple[LoweredUse, ...], tuple[int, ...]]:
    """The uses with their scratch slots, for those that have one, and the sizes of the slots."""
    shared = [use for use in uses if use.slot is not None]
    sizes = {use.node: use.memory_bytes for use in shared}
    slots = color_slots({use.node: use.live for use in shared}, sizes)
    assigned = tuple(replace(use, slot=slots[use.node]) if use.slot is not None else use for use in uses)
    return assigned, slot_sizes(slots, sizes)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_bytes(size: int | str) -> int:
    """A number of bytes from a whole number or a text such as `"8MB"` or `"1.5 GiB"`.

    Raises:
        PlanError: for anything else.

    Example:
        >>> read_bytes("8MB"), read_bytes("1.5 KiB"), read_bytes(7)
        (8000000, 1536, 7)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size)) if not isinstance(size, bool) else None
    if match is None or match[2].upper() not in _UNITS:
        raise PlanError(f"memory_budget={size!r} is no size: give bytes, or a text such as '8MB' or '1.5 GiB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def read_methods(methods: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The method that was asked for each parameter, from regular expressions that are found in its name.

    Args:
        methods: one of `METHODS` for each regular expression; of several that are found, the last counts.
        names: fully qualified names of the hashed parameters.

    Raises:
        PlanError: for an unknown method, a malformed expression, or one that no name has.
    """
    chosen: dict[str, str] = {}
    for pattern, method in methods.items():
        if method not in METHODS:
            raise PlanError(
                f"methods[{pattern!r}]={method!r} is no method: give one of {', '.join(map(repr, METHODS))}"
            )
        try:
            found = [name for name in names if re.search(pattern, name)]
        except (re.error, TypeError) as error:
            raise PlanError(f"methods: {pattern!r} is not a regular expression: {error}") from error
        if not found:
            raise PlanError(f"methods: no hashed parameter has {pattern!r} in its name; fxhash.summary lists them")
        chosen.update(dict.fromkeys(found, method))
    return chosen
