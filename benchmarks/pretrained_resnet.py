"""A trained image classifier made smaller without labels: the accuracy that is left, and what recovery brings back.

The dense model is that of a finished run of `fxhash train`. It is calibrated on 1,024 of its training images, and
recovery learns its outputs on all of them, for some minutes of the process's CPU time. Rows are as in `pretrained.py`,
with the accuracy on the test images; `bytes` is that of the trainable parameters over what they take in float32.

    fxhash train --model resnet20 --data imagefolder:DIR --epochs 10 --flip --output RUN
    python benchmarks/pretrained_resnet.py RUN --data imagefolder:DIR \\
        --output benchmarks/results/pretrained_resnet.json

With `--fraction 0.1` it is one fraction at a time: rows of the same method and fraction in the file that is written to
are replaced, others stay.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from pretrained_methods import METHODS, Compression, Record, add_options, hidden_paths
from torch import Tensor

from fxhash.training import load_data
from fxhash.training.data import ImageData
from fxhash.training.folder import load_model, read_configuration, trained_epochs
from fxhash.training.preprocessing import normalized

CALIBRATED_ON, AT_ONCE = 1024, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of the dense model")
    parser.add_argument("--data", help="as of `fxhash train`; that of the run if omitted")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    add_options(parser, fractions=[0.5, 0.25, 0.1, 0.05])
    arguments = parser.parse_args()
    options, configuration = read_configuration(arguments.run)
    data = load_data(arguments.data or options.data, Path(options.data_folder), image_size=options.image_size)
    mean, std = (torch.tensor(configuration[name]).view(-1, 1, 1) for name in ("mean", "std"))
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(0))
    images = normalized(data.train_images[order], mean, std).split(AT_ONCE)
    test = normalized(data.test_images, mean, std)
    facts = {
        "network": options.network,
        "epochs": trained_epochs(arguments.run),
        "calibration_images": CALIBRATED_ON,
        "recovery_images": len(order),
        "test_images": len(test),
    }
    print(facts)
    model = load_model(arguments.run)
    hidden = [arguments.run, *folders(data), *hidden_paths(arguments)]
    record = Record(arguments.output, facts, partial(accuracy, images=test, labels=data.test_labels), hidden)
    record.measure("dense", 1.0, 1.0, lambda: model)
    compression = Compression(model, images[: CALIBRATED_ON // AT_ONCE], images, None, record)
    for fraction in arguments.fraction:
        compression.measure(fraction, arguments)


def folders(data: ImageData) -> list[Path]:
    """The folder of images that a data set is named by."""
    _, _, folder = data.name.partition(":")
    return [Path(folder)] if folder else []


@torch.inference_mode()
def accuracy(model: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Mapping[str, float]:
    """The fraction of images that are classified right."""
    found = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return {"accuracy": (found == labels).float().mean().item()}


if __name__ == "__main__":
    main()
