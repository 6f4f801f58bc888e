"""What a step of training costs: forward, backward and optimizer, of the dense model and of compressed ones.

ResNet-34 with the stem for CIFAR's small images. The candidates take their steps in turn in one process, and what is
reported is the median of the ratios of neighbouring steps to the dense model's, so that a drift of the machine's speed
hits all of them alike. Run it on an otherwise idle machine.

    python benchmarks/training.py --output benchmarks/results/training.json

Candidates: the dense model; fxhash at each compression; `torch.nn.utils.parametrize` with the same factors, which
generates each weight at every access and is not a graph. Before anything is timed, both must give the same logits.

Of each candidate it reports, beside the ratio:

- `peak_step_bytes`: the most that one step allocates: activations, generated weights, gradients;
- `resident_bytes`: parameters that are trained, buffers, and the optimizer's state, which stay between steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from deploy import assert_same, images, parametrized, peak_of_one_call, ratio, resnet34
from record import head
from torch import Tensor, nn
from torch.nn import functional as F

import fxhash

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True),
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    record = {
        **head(arguments.device),
        "model": "resnet34",
        "optimizer": arguments.optimizer,
        "results": [],
    }
    for batch in arguments.batch:
        for result in measure(batch, arguments):
            record["results"].append(result)
            print(json.dumps(result), flush=True)
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--compress", type=float, nargs="+", default=[0.1])
    parser.add_argument("--repeats", type=int, default=9, help="steps of each candidate, after one to warm up")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


class Step:
    """A step of training on a batch of images; it leaves no gradients behind."""

    def __init__(self, model: nn.Module, trained: list[nn.Parameter], labels: Tensor, optimizer: str) -> None:
        self.model, self.trained, self.labels = model, trained, labels
        self.optimizer = OPTIMIZERS[optimizer](trained, lr=1e-4)

    def __call__(self, x: Tensor) -> None:
        F.cross_entropy(self.model(x), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def resident_bytes(self) -> int:
        state = [each for own in self.optimizer.state.values() for each in own.values() if isinstance(each, Tensor)]
        return sum(tensor.nbytes for tensor in (*self.trained, *self.model.buffers(), *state))


def measure(batch: int, arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    x = images(32)(batch).to(arguments.device)
    labels = torch.randint(10, (batch,), device=arguments.device)
    steps, facts = candidates(x, labels, arguments)
    times = interleaved(steps, x, arguments.repeats)
    for label, seconds in times.items():
        ratios = [one / dense for one, dense in zip(seconds, times["dense"], strict=True)]
        yield {
            "batch": batch,
            "candidate": label,
            "milliseconds": round(1e3 * statistics.median(seconds), 2),
            "ratio_to_dense": ratio(seconds, times["dense"]),
            "ratios": [round(each, 3) for each in ratios],
            "trained_parameters": sum(parameter.numel() for parameter in steps[label].trained),
            "peak_step_bytes": peak(steps[label], x),
            "resident_bytes": steps[label].resident_bytes(),
            **facts.get(label, {}),
        }


def candidates(
    x: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> tuple[dict[str, Step], dict[str, dict[str, object]]]:
    """Steps by name, and what is to be known of the compressed ones."""
    dense = resnet34().to(arguments.device)
    steps: dict[str, Step] = {}
    facts: dict[str, dict[str, object]] = {}

    def add(label: str, model: nn.Module, trained: list[nn.Parameter]) -> None:
        steps[label] = Step(model.train(), trained, labels, arguments.optimizer)

    model = copy.deepcopy(dense)
    add("dense", model, list(model.parameters()))
    for compress in arguments.compress:
        gm = fxhash.transform(dense, compress, seed=0)
        # A generator of its own, with the same values: no candidate trains another's factors.
        generator = copy.deepcopy(gm.smh_generator)
        same = parametrized(copy.deepcopy(dense), generator)
        with torch.no_grad():
            assert_same(f"parametrize {compress:.0%}", same.eval()(x[:2]), gm.eval()(x[:2]))
        # What it replaced is still there, but never used.
        kept = [parameter for name, parameter in same.named_parameters() if ".parametrizations." not in f".{name}"]
        add(f"fxhash {compress:.0%}", gm, list(gm.parameters()))
        add(f"parametrize {compress:.0%}", same, [*kept, *generator.parameters()])
        layout = generator.plan.layout
        # Forward, and the gradients of both factors.
        gflop = 3 * 2 * generator.plan.hashed_before * layout.rank / 1e9
        facts[f"fxhash {compress:.0%}"] = {"rank": layout.rank, "cols": layout.cols, "generating_gflop": gflop}
    return steps, facts


def interleaved(steps: dict[str, Step], x: Tensor, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, taken in turn after one to warm up; another candidate comes first in each round."""
    times: dict[str, list[float]] = {label: [] for label in steps}
    labels = list(steps)
    for repeat in range(repeats + 1):
        first = repeat % len(labels)
        for label in labels[first:] + labels[:first]:
            synchronize(x)
            before = time.perf_counter()
            steps[label](x)
            synchronize(x)
            if repeat:
                times[label].append(time.perf_counter() - before)
    return times


def synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def peak(step: Step, x: Tensor) -> int:
    """Most bytes that one step allocates beyond what stays between steps."""
    if not x.is_cuda:
        return peak_of_one_call(step, x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(x)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
