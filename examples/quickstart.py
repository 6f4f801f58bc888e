"""Shrink a small network to a tenth, train it, ship it as one file, and run it deployed."""

import torch
from torch import nn

import fxhash


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def main() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(512, 64), torch.randint(0, 10, (512,))

    model = fxhash.transform(build(), compress=0.1, seed=0, example_inputs=(images,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss after training: {loss.item():.3f}")

    fxhash.save(model, "model.safetensors")
    received = fxhash.load("model.safetensors", build())
    deployed = fxhash.lower_for_deploy(received)
    difference = (deployed(images) - model.eval()(images)).abs().max().item()
    print(f"largest difference between the trained and the deployed model: {difference:.1e}")
    fxhash.summary(deployed, verbose=True)


if __name__ == "__main__":
    main()
