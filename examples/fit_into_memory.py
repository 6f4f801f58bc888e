"""Fit a deployed model into the memory that one has, see how each weight is computed, and overrule the choice."""

import torch

import fxhash
from fxhash import zoo


def main() -> None:
    image = torch.rand(1, 3, 32, 32)
    gm = fxhash.transform(zoo.create("resnet20", width=64), compress=0.1, example_inputs=(image,))

    for budget in (0, "2MB", "100MB"):
        deployed = fxhash.lower_for_deploy(gm, memory_budget=budget)
        plan = deployed.smh_factors.plan
        cached = sum(use.method == "cache" for use in plan.uses)
        print(f"budget {budget}: {cached} of {len(plan.uses)} weights cached, {plan.peak_bytes / 1e3:.0f} kB at most")

    try:
        fxhash.lower_for_deploy(gm, memory_budget="1kB")
    except fxhash.MemoryBudgetError as error:
        print(f"too small: {error}")

    # Names are regular expressions; "factored", "generate" and "cache" are the methods.
    deployed = fxhash.lower_for_deploy(gm, methods={r"^fc\.": "cache", r"^stage3\.": "generate"})
    fxhash.summary(deployed, verbose=True)
    with torch.inference_mode():
        print(deployed(image).shape)


if __name__ == "__main__":
    main()
