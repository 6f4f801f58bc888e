"""How good the cost model's choice is: counted multiply-adds against measured time, over many layers.

For linear layers and convolutions of common shapes, columns and ranks, it measures applying the low-rank factors
directly, generating the weight and using it, and the layer with a weight that is cached; then it compares the method
that counted operations choose between the first two with the faster of them. Run it on an otherwise idle machine.

    python benchmarks/costs.py --output benchmarks/results/costs.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from record import head
from torch import Tensor
from torch.nn import functional as F

from fxhash.lowering.costs import layer_costs
from fxhash.lowering.functional import factored_conv, factored_linear
from fxhash.smh.arithmetic import generate, is_row_aligned, rows_for

# Shape of the weight, and height and width of the input; None for linear layers.
LAYERS: list[tuple[tuple[int, ...], int | None]] = [
    ((768, 768), None),
    ((3072, 768), None),
    ((768, 3072), None),
    ((1000, 2048), None),
    ((256, 128), None),
    ((64, 64), None),
    ((64, 64, 3, 3), 32),
    ((128, 128, 3, 3), 16),
    ((256, 256, 3, 3), 8),
    ((512, 512, 3, 3), 4),
    ((64, 64, 3, 3), 56),
    ((256, 256, 3, 3), 14),
    ((64, 256, 1, 1), 56),
    ((256, 64, 1, 1), 56),
    ((512, 128, 1, 1), 28),
    ((2048, 512, 1, 1), 7),
    ((960, 160, 1, 1), 7),
    ((16, 64, 1, 1), 112),
]
RANKS = (3, 8, 20, 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        results = [case for shape, side in LAYERS for case in measure(shape, side)]
    regrets = [case["regret"] for case in results]
    thin = [case["in_turn_us"] / case["dense_us"] / case["operations_ratio"] for case in results if case["large"]]
    record = {
        **head(),
        "cases": len(results),
        "regret_mean": round(statistics.geometric_mean(regrets), 4),
        "regret_worst": round(max(regrets), 2),
        "thin_products_cost_median": round(statistics.median(thin), 2),
        "results": results,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print({key: value for key, value in record.items() if key != "results"})


def measure(shape: tuple[int, ...], side: int | None) -> Iterator[dict[str, object]]:
    """One case for each row-aligned number of columns, rank and batch."""
    channel = math.prod(shape[1:])
    for cols in (channel // 8, channel // 4, channel, 4 * channel):
        if cols < 32 or not is_row_aligned(shape, cols):
            continue
        rows = rows_for(math.prod(shape), cols)
        for rank in (rank for rank in RANKS if 2 * rank <= cols):
            left, right, scratch = torch.randn(rows, rank), torch.randn(rank, cols), torch.empty(rows * cols)
            costs = layer_costs(shape, rank, cols)
            for batch in (1, 64, 512) if side is None else (1, 8):
                size = (batch, shape[1]) if side is None else (batch, shape[1], side, side)
                positions = batch * (side or 1) ** 2
                factored, generating, dense = timed(candidates(torch.randn(size), left, right, shape, scratch))
                small_enough = costs.method == "factored" or positions <= costs.max_positions
                yield {
                    "shape": list(shape),
                    "cols": cols,
                    "rank": rank,
                    "positions": positions,
                    "in_turn_us": round(factored, 1),
                    "generate_us": round(generating, 1),
                    "dense_us": round(dense, 1),
                    "operations_ratio": round((costs.factored or 0) / costs.dense, 4),
                    "regret": round((factored if small_enough else generating) / min(factored, generating), 3),
                    # Where work, not the cost of a call or the memory of the weight, is what takes time.
                    "large": positions >= 512 and (costs.factored or 0) > 0.2 * costs.dense,
                }


def candidates(
    x: Tensor, left: Tensor, right: Tensor, shape: tuple[int, ...], scratch: Tensor
) -> tuple[Callable[[], Tensor], ...]:
    """The factors directly; generate and use; use."""
    weight = generate(left, right, shape).clone()
    if len(shape) == 2:
        return (
            lambda: factored_linear(x, left, right, shape),
            lambda: F.linear(x, generate(left, right, shape, scratch=scratch)),
            lambda: F.linear(x, weight),
        )
    padding = shape[2] // 2
    return (
        lambda: factored_conv(x, left, right, shape, padding=padding),
        lambda: F.conv2d(x, generate(left, right, shape, scratch=scratch), padding=padding),
        lambda: F.conv2d(x, weight, padding=padding),
    )


def timed(functions: tuple[Callable[[], Tensor], ...], seconds: float = 0.1) -> list[float]:
    """Median microseconds of each, called in turn."""
    times: list[list[float]] = [[] for _ in functions]
    started = time.perf_counter()
    rounds = 0
    while rounds < 5 or (rounds < 60 and time.perf_counter() - started < seconds):
        for function, own in zip(functions, times, strict=True):
            before = time.perf_counter()
            function()
            own.append(1e6 * (time.perf_counter() - before))
        rounds += 1
    return [statistics.median(own[1:]) for own in times]


if __name__ == "__main__":
    main()
