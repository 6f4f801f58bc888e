"""See what a model would become before allocating a byte for it, then train it or load a file into it."""

import tempfile
from pathlib import Path

import torch

import fxhash
from fxhash import zoo


def main() -> None:
    with torch.device("meta"):
        model = zoo.create("resnet20", width=64)
    for compress in (0.02, 0.1):
        plan = fxhash.transform(model, compress).smh_generator.plan
        print(f"at {compress:.0%}: {plan.trainable_before:,} -> {plan.trainable_after:,}, {plan.layout}")

    # Training starts from it as well: only the factors and one layer at a time take memory.
    started = fxhash.transform(model, 0.02, device="cpu")
    print(f"{sum(parameter.numel() for parameter in started.parameters()):,} parameters to train")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        fxhash.save(fxhash.transform(zoo.create("resnet20", width=64), compress=0.02), path)
        deployed = fxhash.lower_for_deploy(fxhash.load(path, model))
        print(f"{path.stat().st_size / 1e3:.0f} kB on disk, outputs {tuple(deployed(torch.zeros(1, 3, 32, 32)).shape)}")


if __name__ == "__main__":
    main()
