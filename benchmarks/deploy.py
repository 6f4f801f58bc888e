"""Latency and memory of deployed models, beside what else one could deploy.

Every candidate is called in turn in one process, and what is reported is the median of the ratios of neighbouring calls
to the dense model in eager mode, so that a drift of the machine's speed hits all of them alike. Run it on an otherwise
idle machine.

    python benchmarks/deploy.py --output benchmarks/results/deploy.json
    python benchmarks/deploy.py --models resnet34 --feathermap DIR --output FILE

Candidates: the dense model; dense with batch norms folded; `torch.nn.utils.parametrize` with the same factors;
FeatherMap's own deployment (`--feathermap`, a path to a checkout); fxhash at each compression and aspect, with an
unlimited memory budget, and with `separable=False` where that makes a difference; with `--compile`, which takes
minutes, the dense model and fxhash compiled.

With `--runtimes` it compares other forms instead, each at `--batches` and the default aspect: the dense model in eager
mode, in ONNX Runtime (float32, and 8 bits by static quantization), as AOTInductor package, in OpenVINO where that is
installed; fxhash lowered in eager mode, as ONNX file (loaded as usual, and with its factors kept, "small"), as
AOTInductor package; with regular convolutions too. No thread of ONNX Runtime spins after a call: that slows all others.

    python benchmarks/deploy.py --runtimes --compress 0.02 0.1 --batches 1 --output benchmarks/results/runtimes.json
    python benchmarks/runtimes_table.py    # writes its table into docs/benchmarks.md

Of each candidate it reports, beside the ratios:

- `weight_bytes`: what is resident for weights: factors, buffers, whatever is dense, and scratch for generated weights;
- `peak_call_bytes`: the most that one call allocates beyond that, as torch's profiler counts it: activations, mostly;
- `floor_ratio`: what the dense call would take relative to itself if every weight were generated first, at 2 x rank x
  weights FLOP and this machine's measured rate of matrix products;
- `ratio_to_floor`: how far above that floor the candidate is; under 1 where weights need not be materialized.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from record import head
from runtimes import RUNTIMES, Forms, facts
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.profiler import ProfilerActivity, profile

import fxhash


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    record = {
        **head(hidden=[arguments.feathermap]),
        "matmul_gflops": round(measure_matmul(), 1),
        "results": [],
    }
    with torch.inference_mode():
        for name in arguments.models:
            results = (
                compare_runtimes(name, *MODELS[name], arguments)
                if arguments.runtimes is not None
                else measure(name, *MODELS[name], arguments, record["matmul_gflops"])
            )
            for result in results:
                record["results"].append(result)
                print(json.dumps(result), flush=True)
            arguments.output.write_text(json.dumps(record, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--compress", type=float, nargs="+", default=[0.01, 0.02, 0.05, 0.1, 0.25])
    parser.add_argument("--aspects", type=float, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 100])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3, help="time for each candidate and batch size")
    parser.add_argument("--compile", action="store_true", help="also measure dense and fxhash under torch.compile")
    parser.add_argument("--feathermap", type=Path, help="path to a checkout of FeatherMap")
    parser.add_argument("--runtimes", nargs="*", choices=RUNTIMES, help="compare forms in these; in all if none")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


# Models


def resnet34() -> nn.Module:
    """ResNet-34 with the stem for CIFAR's small images."""
    from torchvision.models import resnet34

    model = resnet34(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def from_torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None)

    return build


class EncoderLayer(nn.Module):
    """A transformer layer of BERT's size, written with linear layers."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(attended))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Six such layers over an embedding of 30,522 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30_522, 768)
        self.layers = nn.Sequential(*(EncoderLayer(768, 12) for _ in range(6)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.embedding(tokens))


class Recommender(nn.Module):
    """Two large tables and a small network: almost all of its weights are embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(400_000, 64), nn.Embedding(200_000, 64)
        self.head = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.head(torch.cat([self.users(pairs[:, 0]), self.items(pairs[:, 1])], dim=1))


def images(side: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, 3, side, side)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet34": (resnet34, images(32)),
    "resnet50": (from_torchvision("resnet50"), images(224)),
    "vit_b_16": (from_torchvision("vit_b_16"), images(224)),
    "mobilenet_v3_large": (from_torchvision("mobilenet_v3_large"), images(224)),
    "encoder": (Encoder, lambda batch: torch.randint(0, 30_522, (batch, 64))),
    "recommender": (Recommender, lambda batch: torch.randint(0, 200_000, (batch, 2))),
}


# Candidates


class Generated(nn.Module):
    """A parametrization that computes the weight from the same factors at each access."""

    def __init__(self, generator: fxhash.SMHGenerator, fqn: str) -> None:
        super().__init__()
        self.generator, self.fqn = [generator], fqn

    def forward(self, _: Tensor) -> Tensor:
        return self.generator[0](self.fqn)


def parametrized(model: nn.Module, generator: fxhash.SMHGenerator) -> nn.Module:
    """The dense model with every hashed parameter computed by `torch.nn.utils.parametrize`."""
    for parameter in generator.plan.hashed:
        owner, _, attribute = parameter.fqn.rpartition(".")
        module = model.get_submodule(owner)
        parametrize.register_parametrization(module, attribute, Generated(generator, parameter.fqn), unsafe=True)
    return model


def folded(model: nn.Module) -> nn.Module | None:
    from torch.fx.experimental.optimization import fuse

    try:
        return fuse(model)
    except Exception:
        return None


@contextmanager
def pretended_terminal() -> Iterator[None]:
    """FeatherMap asks the terminal for its width while it is imported, and fails without one."""
    popen = os.popen
    os.popen = lambda *_: StringIO("24 80")  # type: ignore[assignment]
    try:
        yield
    finally:
        os.popen = popen


def feathermap(model: nn.Module, compress: float, checkout: Path) -> nn.Module:
    sys.path.insert(0, str(checkout))
    with pretended_terminal():
        from feathermap.feathernet import FeatherNet
    net = FeatherNet(model, compress=compress)
    net.deploy()
    return net.eval()


def measure(
    name: str,
    build: Callable[[], nn.Module],
    inputs: Callable[[int], Tensor],
    arguments: argparse.Namespace,
    gflops: float,
) -> Iterator[dict[str, object]]:
    """One result for each candidate and batch size."""
    dense = build().eval()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*dense.parameters(), *dense.buffers()))
    candidates: dict[str, nn.Module] = {"dense": dense}
    facts: dict[str, dict[str, object]] = {"dense": {"weight_bytes": weights}}
    fused = folded(build().eval())
    if fused is not None:
        candidates["dense, norms folded"] = fused
    if arguments.compile:
        candidates["dense, compiled"] = torch.compile(build().eval(), dynamic=False)
    for compress in arguments.compress:
        gm = None
        for aspect in arguments.aspects:
            label = f"fxhash {compress:.0%} aspect {aspect:g}"
            try:
                gm = fxhash.transform(dense, compress, aspect=aspect, seed=0).eval()
            except fxhash.BudgetError as error:
                print(f"{name} {label}: {error}", file=sys.stderr)
                continue
            versions = {label: fxhash.lower_for_deploy(gm)}
            if aspect == arguments.aspects[-1]:
                versions[f"{label}, unlimited memory"] = fxhash.lower_for_deploy(gm, memory_budget="1000GB")
            x = inputs(2)
            for version, deployed in versions.items():
                facts[version] = describe(deployed)
                assert_same(f"{name} {version}", deployed(x), gm(x))
            if aspect == arguments.aspects[-1] and gm.smh_generator.plan.kernel_parameters:
                # "Whole" is the records' name for regular ones.
                regular = fxhash.transform(dense, compress, aspect=aspect, separable=False, seed=0).eval()
                versions[f"{label}, whole convolutions"] = fxhash.lower_for_deploy(regular)
                facts[f"{label}, whole convolutions"] = describe(versions[f"{label}, whole convolutions"])
            candidates |= versions
            if arguments.compile and aspect == arguments.aspects[-1]:
                candidates[f"{label}, compiled"] = torch.compile(versions[label], dynamic=False)
        if gm is not None:
            candidates[f"parametrize {compress:.0%}"] = parametrized(build().eval(), gm.smh_generator)
        if arguments.feathermap is not None:
            try:
                candidates[f"FeatherMap {compress:.0%}"] = feathermap(build().eval(), compress, arguments.feathermap)
            except Exception as error:
                print(f"{name} FeatherMap: {type(error).__name__}: {error}", file=sys.stderr)
    for batch in arguments.batches:
        x = inputs(batch)
        times = interleaved(candidates, x, arguments.seconds)
        dense_seconds = statistics.median(times["dense"])
        for label, seconds in times.items():
            result = {
                "model": name,
                "batch": batch,
                "candidate": label,
                "milliseconds": round(1e3 * statistics.median(seconds), 3),
                "ratio_to_dense": ratio(seconds, times["dense"]),
                "ratio_to_folded": ratio(seconds, times.get("dense, norms folded")),
                "calls": len(seconds),
                "peak_call_bytes": peak_of_one_call(candidates[label], x),
                **facts.get(label, {}),
            }
            if "generating_gflop" in result:
                result["floor_ratio"] = round(1 + result["generating_gflop"] / gflops / dense_seconds, 3)
                result["ratio_to_floor"] = round(result["ratio_to_dense"] / result["floor_ratio"], 3)
            yield result


def compare_runtimes(
    name: str, build: Callable[[], nn.Module], inputs: Callable[[int], Tensor], arguments: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """One result for each form in a runtime, and batch size."""
    dense = build().eval()
    for batch in arguments.batches:
        x = inputs(batch)
        with TemporaryDirectory() as folder:
            forms = Forms(name, (x,), arguments.threads, Path(folder), tuple(arguments.runtimes or RUNTIMES))
            forms.add_dense(dense)
            for compress in arguments.compress:
                gm = fxhash.transform(dense, compress, seed=0).eval()
                forms.add_compressed(f"fxhash {compress:.0%}", gm)
                if gm.smh_generator.plan.kernel_parameters:
                    regular = fxhash.transform(dense, compress, separable=False, seed=0).eval()
                    forms.add_compressed(f"fxhash {compress:.0%}, regular convolutions", regular)
            calls = {label: form.call for label, form in forms.forms.items()}
            times = interleaved({label: ignoring_input(call) for label, call in calls.items()}, x, arguments.seconds)
        for label, seconds in times.items():
            yield {
                "model": name,
                "batch": batch,
                "candidate": label,
                "milliseconds": round(1e3 * statistics.median(seconds), 3),
                "ratio_to_dense": ratio(seconds, times["dense"]),
                "ratio_to_onnx": ratio(seconds, times.get("dense, ONNX Runtime")),
                "calls": len(seconds),
                **facts(forms.forms[label]),
            }


def ignoring_input(call: Callable[[], object]) -> Callable[[Tensor], object]:
    """A call without arguments, as one of an input."""
    return lambda _: call()


def assert_same(label: str, actual: Tensor, expected: Tensor) -> None:
    difference = (actual - expected).abs().max()
    assert difference <= 1e-3 * expected.abs().max() + 1e-6, f"{label}: the deployed model differs by {difference}"


def peak_of_one_call(model: nn.Module, x: Tensor) -> int:
    """Most bytes that one call allocates, activations included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        model(x)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def interleaved(
    candidates: Mapping[str, Callable[[Tensor], object]], x: Tensor, seconds: float
) -> dict[str, list[float]]:
    """Call all candidates in turn, after a warm-up, until the slowest had about `seconds`; at least three rounds."""
    times: dict[str, list[float]] = {label: [] for label in candidates}
    for model in candidates.values():
        model(x)
    started = time.perf_counter()
    rounds = 0
    while rounds < 3 or (time.perf_counter() - started < seconds * len(candidates) and rounds < 300):
        for label, model in candidates.items():
            before = time.perf_counter()
            model(x)
            times[label].append(time.perf_counter() - before)
        rounds += 1
    return times


def ratio(seconds: list[float], reference: list[float] | None) -> float | None:
    if reference is None:
        return None
    return round(statistics.median(one / other for one, other in zip(seconds, reference, strict=True)), 3)


def describe(deployed: nn.Module) -> dict[str, object]:
    """What a deployed model holds, and how its weights are computed."""
    factors = deployed.smh_factors
    methods = Counter(use.method for use in factors.plan.uses)
    resident = sum(tensor.numel() * tensor.element_size() for tensor in (*deployed.parameters(), *deployed.buffers()))
    return {
        "rank": factors.compression.layout.rank,
        "cols": factors.compression.layout.cols,
        "weight_bytes": resident + factors.plan.peak_bytes - factors.plan.cached_bytes,
        "peak_generated_bytes": factors.plan.peak_bytes,
        "generating_gflop": 2 * sum({use.fqn: use.costs.generate for use in factors.plan.uses}.values()) / 1e9,
        "methods": dict(sorted(methods.items())),
    }


def measure_matmul(size: int = 1024, repeats: int = 20) -> float:
    """Rate of a square matrix product in GFLOP/s, for comparing with the work of generating."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - before)
    return 2 * size**3 / statistics.median(times) / 1e9


if __name__ == "__main__":
    main()
