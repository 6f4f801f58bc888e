"""What it takes to transform very large models, and models of very many parameters.

    python benchmarks/scaling.py tensors --output benchmarks/results/scaling_tensors.json
    python benchmarks/scaling.py large --output benchmarks/results/scaling_large.json

`tensors` times planning, transforming (on the meta device, and with values) and lowering a chain of linear layers, from
10 to 10,000 of them: the time for each should stay the same. `large` builds a decoder of 7 billion parameters on the
meta device, transforms it to 0.5 %, lowers it and runs it for one token, and reports the most memory that the process
had at each step. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from decoder import Decoder
from record import head
from torch import nn

import fxhash
from fxhash.smh.planning import plan_parameters
from fxhash.smh.selection import describe_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["tensors", "large"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of each time with `tensors`; the median is reported")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results = measure_tensors(arguments.repeats) if arguments.part == "tensors" else measure_large()
    arguments.output.write_text(json.dumps({**head(), "results": results}, indent=1) + "\n")


def timed(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*args, **options)
    return time.perf_counter() - start, result


def measure_tensors(repeats: int) -> list[dict[str, Any]]:
    results = []
    for count in (10, 100, 1_000, 10_000):
        with torch.device("meta"):
            model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(count)])
        seconds: dict[str, list[float]] = {"plan": [], "transform_on_meta": [], "transform": [], "lower": []}
        for _ in range(repeats):
            described = describe_parameters(model)
            seconds["plan"].append(timed(plan_parameters, described, 0.1)[0])
            seconds["transform_on_meta"].append(timed(fxhash.transform, model, 0.1)[0])
            elapsed, gm = timed(fxhash.transform, model, 0.1, device="cpu")
            seconds["transform"].append(elapsed)
            seconds["lower"].append(timed(fxhash.lower_for_deploy, gm)[0])
        milliseconds = {name: round(statistics.median(times) / count * 1e3, 3) for name, times in seconds.items()}
        results.append({"tensors": count, "milliseconds_each": milliseconds})
        print(json.dumps(results[-1]), flush=True)
    return results


def measure_large() -> dict[str, Any]:
    result: dict[str, Any] = {"megabytes_at_start": peak_megabytes()}
    with torch.device("meta"):
        model = Decoder(vocabulary=65_536, width=4096, hidden=11_008, heads=32, layers=32)
    result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    result["dense_megabytes"] = round(4 * result["parameters"] / 1e6)
    seconds, planned = timed(fxhash.transform, model, 0.005)
    result["transform_on_meta"] = {"seconds": round(seconds, 2), "peak_megabytes": peak_megabytes()}
    result["layout"] = str(planned.smh_generator.plan.layout)
    seconds, gm = timed(fxhash.transform, model, 0.005, seed=0, device="cpu")
    result["transform"] = {"seconds": round(seconds, 2), "peak_megabytes": peak_megabytes()}
    result["trained_parameters"] = sum(parameter.numel() for parameter in gm.parameters())
    seconds, deployed = timed(fxhash.lower_for_deploy, gm)
    result["lower"] = {"seconds": round(seconds, 2), "peak_megabytes": peak_megabytes()}
    token = torch.tensor([[1]])
    with torch.inference_mode():
        first, logits = timed(deployed, token)
        later = statistics.median(timed(deployed, token)[0] for _ in range(5))
    assert logits.shape == (1, 1, 65_536)
    assert logits.isfinite().all()
    result["one_token"] = {
        "seconds_first": round(first, 3),
        "seconds": round(later, 3),
        "peak_megabytes": peak_megabytes(),
        "weights_at_a_time_megabytes": round(deployed.smh_factors.plan.peak_bytes / 1e6, 1),
    }
    print(json.dumps(result), flush=True)
    return result


def peak_megabytes() -> int:
    """The most memory that this process has had so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / 1e6 if sys.platform == "darwin" else most / 1e3)


if __name__ == "__main__":
    main()
