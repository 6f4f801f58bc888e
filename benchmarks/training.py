"""What a step of training costs: forward, backward and optimizer, of the dense model and of compressed ones.

ResNet-34 with the stem for CIFAR's small images, ViT-B/16, and a 6-layer encoder of BERT's size. The candidates take
their steps in turn in one process, and what is reported is the median of the ratios of neighbouring steps to the dense
model's, so that a drift of the machine's speed hits all of them alike. Run it on an otherwise idle machine.

    python benchmarks/training.py --optimizer none --output benchmarks/results/training_lowered.json
    python benchmarks/training.py --models resnet34 --batch 128 --compress 0.1 --parametrize --output FILE

Candidates: the dense model; at each compression the transformed model, and what `fxhash.lower_for_training` makes of
it; with `--parametrize`, `torch.nn.utils.parametrize` with the same factors, which generates each weight at every
access and is not a graph. Before anything is timed, all must give the same outputs.

Of each candidate it reports, beside the ratio:

- `peak_step_bytes`: the most that one step allocates: activations, generated weights, gradients;
- `resident_bytes`: parameters that are trained, buffers, and the optimizer's state, which stay between steps;
- `peak_ratio`: the sum of both over that of the dense model.
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
from deploy import MODELS, assert_same, parametrized, peak_of_one_call, ratio
from record import head
from torch import Tensor, nn
from torch.nn import functional as F

import fxhash

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True),
}
# Examples in a batch; the encoder's have 64 tokens each.
BATCHES = {"encoder": 8, "vit_b_16": 4, "resnet34": 64}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    record = {
        **head(arguments.device),
        "optimizer": arguments.optimizer,
        "results": [],
    }
    for name in arguments.models:
        for result in measure(name, arguments.batch or BATCHES[name], arguments):
            record["results"].append(result)
            print(json.dumps(result), flush=True)
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--batch", type=int, help="examples in a batch; one that suits the model if omitted")
    parser.add_argument("--compress", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--parametrize", action="store_true", help="also measure torch.nn.utils.parametrize")
    parser.add_argument("--repeats", type=int, default=9, help="steps of each candidate, after one to warm up")
    parser.add_argument("--optimizer", choices=[*OPTIMIZERS, "none"], default="adamw")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


class Step:
    """A step of training on a batch; it leaves no gradients behind. Without optimizer, forward and backward alone."""

    def __init__(self, model: nn.Module, trained: list[nn.Parameter], optimizer: str) -> None:
        self.model, self.trained = model, trained
        self.optimizer = None if optimizer == "none" else OPTIMIZERS[optimizer](trained, lr=1e-4)

    def __call__(self, x: Tensor) -> None:
        outputs = self.model(x)
        if outputs.dim() == 2:
            F.cross_entropy(outputs, torch.arange(len(x), device=x.device) % outputs.shape[1]).backward()
        else:
            outputs.square().mean().backward()
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in self.trained:
            parameter.grad = None

    def resident_bytes(self) -> int:
        states = {} if self.optimizer is None else self.optimizer.state
        state = [each for own in states.values() for each in own.values() if isinstance(each, Tensor)]
        return sum(tensor.nbytes for tensor in (*self.trained, *self.model.buffers(), *state))


def measure(name: str, batch: int, arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    build, inputs = MODELS[name]
    x = inputs(batch).to(arguments.device)
    steps, facts = candidates(build().to(arguments.device), x, arguments)
    times = interleaved(steps, x, arguments.repeats)
    peaks = {label: peak(step, x) for label, step in steps.items()}
    whole = {label: peaks[label] + step.resident_bytes() for label, step in steps.items()}
    for label, seconds in times.items():
        ratios = [one / dense for one, dense in zip(seconds, times["dense"], strict=True)]
        yield {
            "model": name,
            "batch": batch,
            "candidate": label,
            "milliseconds": round(1e3 * statistics.median(seconds), 2),
            "ratio_to_dense": ratio(seconds, times["dense"]),
            "ratios": [round(each, 3) for each in ratios],
            "trained_parameters": sum(parameter.numel() for parameter in steps[label].trained),
            "peak_step_bytes": peaks[label],
            "resident_bytes": steps[label].resident_bytes(),
            "peak_ratio": round(whole[label] / whole["dense"], 4),
            **facts.get(label, {}),
        }


def candidates(
    dense: nn.Module, x: Tensor, arguments: argparse.Namespace
) -> tuple[dict[str, Step], dict[str, dict[str, object]]]:
    """Steps by name, and what is to be known of the compressed ones."""
    steps: dict[str, Step] = {}
    facts: dict[str, dict[str, object]] = {}

    def add(label: str, model: nn.Module, trained: list[nn.Parameter]) -> None:
        steps[label] = Step(model.train(), trained, arguments.optimizer)

    model = copy.deepcopy(dense)
    add("dense", model, list(model.parameters()))
    for compress in arguments.compress:
        gm = fxhash.transform(dense, compress, seed=0)
        # With parameters of its own: no candidate trains another's.
        lowered = fxhash.lower_for_training(copy.deepcopy(gm))
        with torch.no_grad():
            assert_same(f"lowered {compress:.0%}", lowered.eval()(x[:2]), gm.eval()(x[:2]))
        add(f"fxhash {compress:.0%}", gm, list(gm.parameters()))
        add(f"fxhash {compress:.0%}, lowered", lowered, list(lowered.parameters()))
        if arguments.parametrize:
            generator = copy.deepcopy(gm.smh_generator)
            same = parametrized(copy.deepcopy(dense), generator)
            with torch.no_grad():
                assert_same(f"parametrize {compress:.0%}", same.eval()(x[:2]), gm.eval()(x[:2]))
            gm.train()
            # What it replaced is still there, but never used.
            kept = [parameter for name, parameter in same.named_parameters() if ".parametrizations." not in f".{name}"]
            add(f"parametrize {compress:.0%}", same, [*kept, *generator.parameters()])
        plan = gm.smh_generator.plan
        # Forward, and the gradients of both factors.
        gflop = 3 * 2 * plan.hashed_before * plan.layout.rank / 1e9
        facts[f"fxhash {compress:.0%}"] = {
            "rank": plan.layout.rank,
            "cols": plan.layout.cols,
            "generating_gflop": gflop,
        }
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
