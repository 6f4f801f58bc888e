"""The front over bytes: files of the networks of `front.py` in 32, 8 and 4 bits, and their accuracy.

    python benchmarks/front_bytes.py --data imagefolder:DIR --runs DIR

Rounded after training, in rows that have a step each; or trained in so many bits, where a run says so. Compressed
networks are files of `fxhash.save` with folded batch norms, with all that is in them. Of dense ones only the numbers
count: weights and steps, one bias for each batch norm that a convolution takes in, and whatever else is trained. What
is not rounded has 16 bits in both, where there are 8 or 4. A dense file would be somewhat larger than it is said to be.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from front import read_rows, write_row
from record import commit
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxhash.smh.factor_bits import FactorBits, dequantize, quantize
from fxhash.training import evaluate, export
from fxhash.training.data import ImageData, load_data
from fxhash.training.folder import load_model, read_configuration

BITS = (32, 8, 4)
# Types of factors and of all else.
STORAGE = {32: (None, None), 8: ("int8", "bfloat16"), 4: ("int4", "bfloat16")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as of `fxhash train`")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs' folders, as of `front.py`")
    results = Path(__file__).parent / "results"
    parser.add_argument("--output", type=Path, default=results / "front_bytes.csv")
    arguments = parser.parse_args()
    data = load_data(arguments.data, Path("data"), False, None)
    known = read_rows(arguments.output)
    for folder in sorted(arguments.runs.glob("run-*")):
        if (folder / "result.json").exists() and f"{folder.name}-{bits_of(folder)[-1]}" not in known:
            for row in rows_of(folder, data):
                write_row(arguments.output, row)
                print(row, flush=True)


def bits_of(folder: Path) -> tuple[int, ...]:
    """In which bits the network of a run is measured: those alone that its factors were trained in, if they are few."""
    options, _ = read_configuration(folder)
    trained = options.recipe.factor_bits
    return BITS if trained == 32 else (trained,)


def rows_of(folder: Path, data: ImageData) -> Iterator[dict[str, object]]:
    """Bytes and accuracy of a finished run in each number of bits."""
    for bits in bits_of(folder):
        model = load_model(folder)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.safetensors"
            if isinstance(model, torch.fx.GraphModule):
                export(folder, path, *STORAGE[bits], fold_batch_norms=True)
                size = path.stat().st_size
            else:
                size = dense_bytes(model, bits)
                round_(model, bits)
                safetensors.torch.save_model(model, str(path))
            accuracy = evaluate(folder, data, path)["trained"]
        yield {
            "name": f"{folder.name}-{bits}",
            "run": folder.name,
            "bits": bits,
            "bytes": size,
            "test_accuracy": round(accuracy, 4),
            "commit": commit(),
            "torch": torch.__version__,
        }


def is_rounded(parameter: nn.Parameter) -> bool:
    """Whether a parameter of a dense network has rows to be rounded."""
    return parameter.ndim > 1 and parameter.numel() > len(parameter)


def round_(model: nn.Module, bits: int) -> None:
    """Give the weights of a dense network the values that they have in so many bits."""
    if bits == 32:
        return
    with torch.no_grad():
        for parameter in filter(is_rounded, model.parameters()):
            rows = parameter.flatten(1)
            parameter.copy_(dequantize(*quantize(rows, FactorBits(bits)), FactorBits(bits)).view_as(parameter))


def dense_bytes(model: nn.Module, bits: int) -> int:
    """Bytes of a dense network's numbers."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    folded = {id(parameter) for norm in norms for parameter in norm.parameters()}
    others, total = sum(norm.num_features for norm in norms), 0
    for parameter in model.parameters():
        if is_rounded(parameter):
            total += math.ceil(parameter.numel() * bits / 8)
            # The step of each row.
            others += len(parameter) if bits < 32 else 0
        elif id(parameter) not in folded:
            others += parameter.numel()
    return total + others * (4 if bits == 32 else 2)


if __name__ == "__main__":
    main()
