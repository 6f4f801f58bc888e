"""Decide which parameters are hashed: by name, by a function, and with what is left of the budget."""

from torch import nn

import fxhash
from fxhash import zoo


def main() -> None:
    model = zoo.create("resnet8", width=32)

    # The first and the last layer are small and sensitive: keep them dense, at the same total budget.
    gm = fxhash.transform(model, compress=0.1, exclude=[r"^conv1\.", r"^fc\."])
    fxhash.summary(gm, verbose=True)

    def large_convolution(fqn: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() == 4 and parameter.numel() > 10_000

    gm = fxhash.transform(model, compress=0.3, include=large_convolution)
    print(f"{len(gm.smh_generator.plan.hashed)} parameters are hashed")

    try:
        fxhash.transform(model, compress=0.001)
    except fxhash.BudgetError as error:
        print(f"too small: {error}")
        print(f"the smallest: {fxhash.transform(model, error.smallest_compress).smh_generator.plan.trainable_after:,}")


if __name__ == "__main__":
    main()
