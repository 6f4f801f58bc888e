"""Test accuracy by layout: how tall may W be, at equal budget and with equal tuning effort?

Trains a ResNet-8 once for each aspect, peak learning rate and seed, with the recipe of `fxhash demo`; writes one CSV
row a run. Data: scikit-learn's digits, or a folder with `train/<class>/*` and `test/<class>/*`.

    python benchmarks/layout_accuracy.py --output benchmarks/results/layout_accuracy_digits.csv
    python benchmarks/layout_accuracy.py --data DIR --train-images 2500 --epochs 8 --output FILE
"""

from __future__ import annotations

import argparse
import csv
import platform
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import torch

import fxhash
from fxhash import zoo
from fxhash.demo import Images, load_data, train

WIDTH = 32


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    data = load_data() if arguments.data is None else load_folder(arguments.data, arguments.train_images)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    common = {
        "data": "digits" if arguments.data is None else arguments.data.name,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "epochs": arguments.epochs,
        "width": WIDTH,
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    with arguments.output.open("w", newline="") as file:
        writer = None
        for compress in arguments.compress:
            for seed in range(arguments.seeds):
                for rate in arguments.learning_rates:
                    for aspect in arguments.aspects:
                        row = common | run(data, compress, aspect, rate, seed, arguments.epochs)
                        if writer is None:
                            writer = csv.DictWriter(file, row)
                            writer.writeheader()
                        writer.writerow(row)
                        file.flush()
                        print(row, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images; scikit-learn's digits if left out")
    parser.add_argument("--train-images", type=int, default=2500, help="how many of the folder's, evenly by class")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--compress", type=float, nargs="+", default=[0.1, 0.03])
    parser.add_argument("--aspects", type=float, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[5e-3, 1e-2, 2e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def run(data: Images, compress: float, aspect: float, rate: float, seed: int, epochs: int) -> dict[str, object]:
    """Train once; what came of it, as a row."""
    torch.manual_seed(seed)
    channels, classes = data.train_images.shape[1], int(data.train_labels.max()) + 1
    model = zoo.create("resnet8", in_channels=channels, num_classes=classes, width=WIDTH)
    gm = fxhash.transform(model, compress, aspect=aspect, seed=seed)
    started = time.perf_counter()
    train(gm, data, epochs, rate)
    with torch.inference_mode():
        predicted = torch.cat([gm(images).argmax(1) for images in data.test_images.split(500)])
    plan = gm.smh_generator.plan
    return {
        "compress": compress,
        "aspect": aspect,
        "rows": plan.layout.rows,
        "cols": plan.layout.cols,
        "rank": plan.layout.rank,
        "trainable_before": plan.trainable_before,
        "trainable_after": plan.trainable_after,
        "learning_rate": rate,
        "seed": seed,
        "accuracy": round((predicted == data.test_labels).double().mean().item(), 4),
        "seconds": round(time.perf_counter() - started, 1),
    }


def load_folder(folder: Path, train_images: int, test_images: int = 2000) -> Images:
    """The first images of each class, as many of each as make up the counts."""
    train_set = read_images(folder / "train", train_images)
    test_set = read_images(folder / "test", test_images)
    mean, std = train_set[0].mean((0, 2, 3), keepdim=True), train_set[0].std((0, 2, 3), keepdim=True)
    return Images((train_set[0] - mean) / std, train_set[1], (test_set[0] - mean) / std, test_set[1])


def read_images(folder: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import to_tensor

    dataset = ImageFolder(str(folder))
    by_class = defaultdict(list)
    for index, (_, label) in enumerate(dataset.samples):
        by_class[label].append(index)
    chosen = [index for indices in by_class.values() for index in indices[: count // len(by_class)]]
    images, labels = zip(*(dataset[index] for index in chosen), strict=True)
    return torch.stack([to_tensor(image) for image in images]), torch.tensor(labels)


if __name__ == "__main__":
    main()
