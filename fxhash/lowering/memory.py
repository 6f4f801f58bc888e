"""When each weight is in memory, and where: scratch slots, the peak, and what is cached within a budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import networkx as nx

from fxhash.errors import MemoryBudgetError
from fxhash.lowering.plan import LoweringPlan, WeightUse, cached_bytes


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


def peak_of(uses: Sequence[WeightUse], slot_bytes: Sequence[int]) -> int:
    """Most bytes of weights at any time, for uses whose slots have these sizes."""
    changes: dict[int, int] = {}
    inside: dict[str, list[WeightUse]] = {}
    for use in uses:
        if use.inside is not None:
            inside.setdefault(use.node, []).append(use)
    within = [replace(group[0], method="generate", memory_bytes=_most_inside(group)) for group in inside.values()]
    for use in (*(use for use in uses if use.inside is None), *within):
        if use.slot is None and use.method != "cache":
            first, last = use.live
            changes[first] = changes.get(first, 0) + use.memory_bytes
            changes[last + 1] = changes.get(last + 1, 0) - use.memory_bytes
    now = most = 0
    for position in sorted(changes):
        now += changes[position]
        most = max(most, now)
    return cached_bytes(uses) + sum(slot_bytes) + most


def _most_inside(uses: Sequence[WeightUse]) -> int:
    """Most bytes of weights at a time inside of one part: those of a module and of the modules around it."""
    sizes: dict[str, int] = {}
    for use in uses:
        if use.method != "cache" and use.inside is not None:
            sizes[use.inside] = sizes.get(use.inside, 0) + use.memory_bytes
    return max((sum(sizes.get(caller, 0) for caller in _prefixes(path)) for path in sizes), default=0)


def _prefixes(path: str) -> list[str]:
    atoms = path.split(".")
    return [".".join(atoms[:count]) for count in range(1, len(atoms) + 1)]


def choose_cached(plan: LoweringPlan, budget: int, candidates: Collection[str]) -> frozenset[str]:
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
            saved[use.fqn] = saved.get(use.fqn, 0) + use.costs.saved_by_caching(use.method)
            size[use.fqn] = use.weight_bytes
    worthwhile = [fqn for fqn in saved if saved[fqn]]
    kept: set[str] = set()
    total = 0
    for fqn in sorted(worthwhile, key=lambda fqn: (-saved[fqn] / size[fqn], -size[fqn], fqn)):
        if total + size[fqn] + plan.peak_bytes <= budget or _peak_if_kept(plan, kept | {fqn}, budget) <= budget:
            kept.add(fqn)
            total += size[fqn]
    return frozenset(kept)


def _peak_if_kept(plan: LoweringPlan, kept: Collection[str], budget: int) -> int:
    """What the peak would be; only a lower bound where the kept weights alone are over the budget."""
    uses = [replace(use, method="cache", slot=None) if use.fqn in kept else use for use in plan.uses]
    at_least = cached_bytes(uses)
    return at_least if at_least > budget else peak_of(*assign_slots(uses))


def assign_slots(uses: Sequence[WeightUse]) -> tuple[tuple[WeightUse, ...], tuple[int, ...]]:
    """The uses with their scratch slots, for those that have one, and the sizes of the slots."""
    shared = [use for use in uses if use.slot is not None]
    sizes = {use.node: use.memory_bytes for use in shared}
    slots = color_slots({use.node: use.live for use in shared}, sizes)
    assigned = tuple(replace(use, slot=slots[use.node]) if use.slot is not None else use for use in uses)
    return assigned, slot_sizes(slots, sizes)
