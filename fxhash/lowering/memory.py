"""When each weight is in memory, and where: scratch slots, the peak, and what is cached within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import networkx as nx

from fxhash.errors import MemoryBudgetError
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.method import Method
from fxhash.lowering.plan import LoweringPlan, WeightUse, cached_bytes

# Of the bytes of the factors, the part that weights take at most which are cached where no budget is given.
_CACHED_PART = 20


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
    changes: Counter[int] = Counter()
    nested: dict[str, list[WeightUse]] = {}
    for use in uses:
        if use.module is not None:
            nested.setdefault(use.node, []).append(use)
        elif use.slot is None:
            _count(use.live, use.memory_bytes, changes)
    for same_node in nested.values():
        _count(same_node[0].live, _most_nested(same_node), changes)
    most = max(accumulate(changes[position] for position in sorted(changes)), default=0)
    return cached_bytes(uses) + sum(slot_bytes) + max(most, 0)


def _count(live: tuple[int, int], size: int, changes: Counter[int]) -> None:
    first, last = live
    changes[first] += size
    changes[last + 1] -= size


def _most_nested(uses: Sequence[WeightUse]) -> int:
    """Most bytes at a time nested in one opaque submodule: the weights of a module and of the modules around it."""
    sizes: Counter[str] = Counter()
    for use in uses:
        sizes[use.module or ""] += use.memory_bytes
    return max(sum(sizes[caller] for caller in _prefixes(path)) for path in sizes)


def _prefixes(path: str) -> list[str]:
    atoms = path.split(".")
    return [".".join(atoms[:count]) for count in range(1, len(atoms) + 1)]


def choose_cached(
    plan: LoweringPlan, budget: int, candidates: Collection[str], device: DeviceProfile
) -> frozenset[str]:
    """The parameters to cache within a budget of bytes: those that save most work a byte first.

    Args:
        plan: how the weights are computed if none of `candidates` is cached.
        budget: most bytes of weights at any time.
        candidates: names of parameters that may be cached.
        device: what the model is to run on.

    Raises:
        MemoryBudgetError: if the budget is less than what generating on demand takes; it names the least.
    """
    if budget < plan.peak_bytes:
        raise MemoryBudgetError(
            f"memory_budget={budget:,} bytes is less than the {plan.peak_bytes:,} bytes that weights take while they "
            f"are in use: give {plan.peak_bytes} or more, or 0 to generate every weight on demand",
            plan.peak_bytes,
        )
    cached: set[str] = set()
    total = 0
    for fqn, size in _worth_caching(plan, candidates, device):
        if total + size + plan.peak_bytes <= budget or _peak_if_cached(plan, cached | {fqn}, budget) <= budget:
            cached.add(fqn)
            total += size
    return frozenset(cached)


def choose_small(plan: LoweringPlan, candidates: Collection[str], device: DeviceProfile) -> frozenset[str]:
    """The parameters to cache where no budget is given: of those in the order of `choose_cached`, few and small ones.

    Together they take at most a twentieth of what the factors take. They are the small layers beside large tables,
    whose calls take longer than their work.

    Args:
        plan: how the weights are computed if none of `candidates` is cached.
        candidates: names of parameters that may be cached.
        device: what the model is to run on.
    """
    if device.generates_once:
        return frozenset()
    cached = set()
    left = plan.factor_bytes // _CACHED_PART
    for fqn, size in _worth_caching(plan, candidates, device):
        if size <= left:
            cached.add(fqn)
            left -= size
    return frozenset(cached)


def _worth_caching(plan: LoweringPlan, candidates: Collection[str], device: DeviceProfile) -> list[tuple[str, int]]:
    """The parameters that save work if they are cached, and their bytes: those first that save most a byte."""
    saved: Counter[str] = Counter()
    size: dict[str, int] = {}
    for use in plan.uses:
        if use.fqn in candidates:
            saved[use.fqn] += use.costs.saved_by_caching(use.method, device.thin_product_cost)
            size[use.fqn] = use.weight_bytes
    worthwhile = [fqn for fqn in saved if saved[fqn]]
    return [(fqn, size[fqn]) for fqn in sorted(worthwhile, key=lambda fqn: (-saved[fqn] / size[fqn], -size[fqn], fqn))]


def _peak_if_cached(plan: LoweringPlan, cached: Collection[str], budget: int) -> int:
    """What the peak would be; only a lower bound where the cached weights alone are over the budget."""
    uses = [_as_cached(use) if use.fqn in cached else use for use in plan.uses]
    at_least = cached_bytes(uses)
    return at_least if at_least > budget else peak_of(*assign_slots(uses))


def _as_cached(use: WeightUse) -> WeightUse:
    return replace(use, method=Method.CACHE, module=None, slot=None, memory_bytes=0, folded_norm="")


def assign_slots(uses: Sequence[WeightUse]) -> tuple[tuple[WeightUse, ...], tuple[int, ...]]:
    """The uses with their scratch slots, for those that have one, and the sizes of the slots."""
    shared = {_identity(use): use for use in uses if use.slot is not None}
    sizes = {name: use.memory_bytes for name, use in shared.items()}
    slots = color_slots({name: use.live for name, use in shared.items()}, sizes)
    assigned = tuple(replace(use, slot=slots[_identity(use)]) if use.slot is not None else use for use in uses)
    return assigned, slot_sizes(slots, sizes)


def _identity(use: WeightUse) -> str:
    return f"{use.weight} for {use.node}"
