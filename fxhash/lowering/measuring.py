"""Measuring what decides between the methods of computing a weight, on the machine at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fxhash.errors import PlanError
from fxhash.lowering.convolution import depthwise, pointwise
from fxhash.lowering.costs import layer_costs
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.functional import factored_conv, factored_linear
from fxhash.smh.arithmetic import generate, rows_for
from fxhash.smh.checks import check_device, check_seconds

# Shape of the weight, columns of `W`, rank, and size of the input, of layers where work is what takes time.
_LAYERS: tuple[tuple[tuple[int, ...], int, int, tuple[int, ...]], ...] = (
    ((768, 768), 768, 96, (256, 768)),
    ((3072, 768), 3072, 64, (196, 768)),
    ((768, 3072), 3072, 96, (196, 3072)),
    ((256, 256, 3, 3), 2304, 48, (4, 256, 14, 14)),
    ((512, 256, 1, 1), 256, 64, (4, 256, 14, 14)),
)
# Channels and side of images that a depthwise convolution gets, each from 3 x 3 pixels.
_DEPTHWISE = ((64, 32), (128, 16), (256, 14))
_SECONDS = 6.0


@dataclass(frozen=True)
class _Timed:
    """Two calls that are timed alternately, and the multiply-adds of each."""

    call: Callable[[], Tensor]
    work: int
    dense: Callable[[], Tensor]
    dense_work: int

    def cost(self, seconds: float) -> tuple[float, float]:
        """Time of a multiply-add over one of the dense call; multiply-adds of that a second."""
        own, dense = _least((self.call, self.dense), seconds)
        return (own / self.work) / (dense / self.dense_work), self.dense_work / dense


def profile_device(*, device: torch.device | str = "cpu", seconds: float = _SECONDS) -> DeviceProfile:
    """Measure this machine for `lower_for_deploy(..., device=...)`: in eager mode, float32, with torch's threads.

    Run it while nothing else does. Store the result by its `to_json`.

    Args:
        device: where the models are to run.
        seconds: about how long it may take, at most 60.

    Raises:
        PlanError: if there is no such device, or `seconds` is out of range.

    Example:
        >>> profile_device(seconds=0.1).thin_product_cost > 0
        True
    """
    device = check_device(device)
    check_seconds(seconds)
    if device.type == "meta":
        raise PlanError("device='meta' computes nothing that could be measured: give the device to run on")
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        thin = [_layer(shape, cols, rank, size, device) for shape, cols, rank, size in _LAYERS]
        share = seconds / (len(thin) + 2 * len(_DEPTHWISE) + 1)
        costs, rates = zip(*(each.cost(share) for each in thin), strict=True)
        channels_last = device.type == "cpu" and _is_faster_last(len(_DEPTHWISE) * share)
        order = torch.channels_last if channels_last else torch.contiguous_format
        spatial_costs = [_depthwise(*images, device, order).cost(share)[0] for images in _DEPTHWISE]
        x, weight = torch.randn(1, 8, device=device), torch.randn(8, 8, device=device)
        (call,) = _least((lambda: F.linear(x, weight),), share)
    return DeviceProfile(
        thin_product_cost=round(statistics.median(costs), 3),
        depthwise_cost=round(statistics.median(spatial_costs), 2),
        call_cost=round(call * statistics.median(rates)),
        channels_last=channels_last,
        shares_scratch=device.type == "cpu",
    )


def _layer(shape: tuple[int, ...], cols: int, rank: int, size: tuple[int, ...], device: torch.device) -> _Timed:
    rows = rows_for(torch.Size(shape).numel(), cols)
    left, right = torch.randn(rows, rank, device=device), torch.randn(rank, cols, device=device)
    x, weight, costs = torch.randn(size, device=device), generate(left, right, shape), layer_costs(shape, rank, cols)
    positions = x.numel() // shape[1]
    assert costs.factored is not None
    work = positions * costs.factored, positions * costs.dense
    if len(shape) == 2:
        return _Timed(lambda: factored_linear(x, left, right, shape), work[0], lambda: F.linear(x, weight), work[1])
    padding = shape[2] // 2
    return _Timed(
        lambda: factored_conv(x, left, right, shape, padding=padding),
        work[0],
        lambda: F.conv2d(x, weight, padding=padding),
        work[1],
    )


def _depthwise(channels: int, side: int, device: torch.device, order: torch.memory_format) -> _Timed:
    """A depthwise convolution of images in an order, beside a regular one of images in the usual order."""
    shape, count = (channels, channels, 3, 3), 2
    x, kernels = torch.randn(1, channels, side, side, device=device), torch.randn(count, 9, device=device)
    weight, positions = torch.randn(shape, device=device), side**2
    ordered = x.contiguous(memory_format=order)
    return _Timed(
        lambda: depthwise(ordered, kernels, shape, padding=1),
        positions * count * channels * 9,
        lambda: F.conv2d(x, weight, padding=1),
        positions * weight.numel(),
    )


def _is_faster_last(seconds: float) -> bool:
    """Whether separable convolutions are faster on images that have their channels last in memory."""
    orders = (torch.contiguous_format, torch.channels_last)
    times = _least([_separable(*images, order) for order in orders for images in _DEPTHWISE], seconds)
    return sum(times[len(_DEPTHWISE) :]) < sum(times[: len(_DEPTHWISE)])


def _separable(channels: int, side: int, order: torch.memory_format) -> Callable[[], Tensor]:
    x = torch.randn(1, channels, side, side).contiguous(memory_format=order)
    kernels, weight = torch.randn(2, 9), torch.randn(channels, 2 * channels, 1, 1)
    return lambda: pointwise(depthwise(x, kernels, (channels, channels, 3, 3), padding=1), weight)


def _least(calls: Sequence[Callable[[], Tensor]], seconds: float) -> list[float]:
    """The fewest seconds of each of some calls, made alternately: those in which other processes disturbed it least."""
    times: list[list[float]] = [[] for _ in calls]
    started = time.perf_counter()
    while len(times[0]) < 4 or time.perf_counter() - started < seconds:
        for call, own in zip(calls, times, strict=True):
            before = time.perf_counter()
            result = call()
            if result.device.type != "cpu":
                torch.accelerator.synchronize(result.device)
            own.append(time.perf_counter() - before)
    return [min(own) for own in times]
