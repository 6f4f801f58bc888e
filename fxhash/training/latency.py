"""How long models take, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def median_latencies(models: Sequence[nn.Module], images: Tensor, calls: int) -> list[float]:
    """Median seconds of a call of each model, called alternately, so that a busy moment hits all of them alike.

    Args:
        models: what to call, in inference mode.
        images: one batch.
        calls: how often to call each.
    """
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for model in models:
            model(images)
        for _ in range(calls):
            for model, times in zip(models, seconds, strict=True):
                started = time.perf_counter()
                model(images)
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]
