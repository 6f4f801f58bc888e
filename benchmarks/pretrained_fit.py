"""What a start from a trained model takes: time and memory of `fxhash.transform` with calibration, without recovery.

Each model is made in a process of its own. ViT-B/16 has random weights, and reads 32 random images of 224 x 224 in
batches of 8; the sentence encoder and its calibration are those of `pretrained.py`.

    python benchmarks/pretrained_fit.py --output benchmarks/results/pretrained_fit.json

Rows of the same model in the file that is written to are replaced, others stay.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pretrained import CALIBRATED_ON, load_model, sentences
from pretrained_methods import peak_bytes
from record import head
from torch import nn

import fxhash
from fxhash.capture.calibration import Batch

Made = tuple[nn.Module, list[Batch]]


def vit_b_16() -> Made:
    """The model of torchvision, and its calibration."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.vit_b_16(weights=None).eval()
    return model, [*torch.randn(32, 3, 224, 224).split(8)]


def minilm() -> Made:
    """The sentence encoder, and its calibration."""
    model, batches = load_model()
    texts = sentences()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    return model, [*batches([texts[index] for index in order[:CALIBRATED_ON]])]


# What to compress, and the fraction of its parameters that is left.
MODELS: dict[str, tuple[Callable[[], Made], float]] = {"vit_b_16": (vit_b_16, 0.1), "all-MiniLM-L6-v2": (minilm, 0.25)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="file to write the record to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.models:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
            row = own.submit(measure, name, arguments.threads).result()
        print(json.dumps(row), flush=True)
        if arguments.output is not None:
            path = arguments.output
            known = json.loads(path.read_text())["rows"] if path.exists() else []
            rows = [*(each for each in known if each["model"] != name), row]
            path.write_text(json.dumps({**head(), "rows": rows}, indent=1) + "\n")


def measure(name: str, threads: int) -> dict[str, Any]:
    """The row of a model; `peak_bytes_before` is the most that the process took before, with the model in memory."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", category=fxhash.OpaqueWarning)
    build, fraction = MODELS[name]
    model, calibration = build()
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    before, begun, start = peak_bytes(), time.perf_counter(), time.process_time()
    fxhash.transform(model, fraction, init="pretrained", calibration=calibration, seed=0)
    return {
        "model": name,
        "fraction": fraction,
        "parameters": trained,
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - start, 1),
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
    }


if __name__ == "__main__":
    main()
