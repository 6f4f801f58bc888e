"""How long models take, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn


def median_latencies(models: Sequence[nn.Module], images: Tensor, calls: int) -> list[float]:
    """Median seconds of a call of each model, called alternately, so that a busy moment hits all of them alike.

    Args:
        models: what to call, in inference mode.
        images: one batch.
        calls: how often to call each.
    """
    with torch.inference_mode():
        seconds = alternating_seconds([partial(model, images) for model in models], calls)
    return [statistics.median(times) for times in seconds]


def alternating_seconds(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each call in each round, in which all are called one after the other; once before, untimed.

    Args:
        calls: what to time.
        rounds: how often.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    return seconds
