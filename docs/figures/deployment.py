"""Draw `deployment.png` from the records of `benchmarks/deploy.py`: latency and memory of deployed models.

Run it with `python docs/figures/deployment.py`; it needs matplotlib.
"""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

HERE = Path(__file__).parent
RECORDS = HERE.parent.parent / "benchmarks" / "results"
INK, MUTED = "#1f2933", "#52606d"
MODELS = {
    "resnet34": ("ResNet-34, CIFAR stem", "#0b7285", "o"),
    "resnet50": ("ResNet-50", "#e8590c", "s"),
    "vit_b_16": ("ViT-B/16", "#5f3dc4", "^"),
    "mobilenet_v3_large": ("MobileNetV3 Large", "#2b8a3e", "D"),
    "encoder": ("6-layer encoder of BERT's size", "#c2255c", "v"),
    "recommender": ("recommender of two tables", "#868e96", "P"),
}
COMPRESS = (1, 2, 5, 10, 25)


def main() -> None:
    """Write the figure beside this script."""
    records = [
        result for file in sorted(RECORDS.glob("deploy_*.json")) for result in json.loads(file.read_text())["results"]
    ]
    figure = Figure(figsize=(13, 5), dpi=100, facecolor="white", layout="constrained")
    latency, memory = figure.subplots(1, 2)
    for model, (label, color, marker) in MODELS.items():
        dense = find(records, model, "dense")
        deployed = {
            compress: find(records, model, f"fxhash {compress}% aspect 16")
            for compress in COMPRESS
            if has(records, model, f"fxhash {compress}% aspect 16")
        }
        style = {"color": color, "marker": marker, "label": label, "linewidth": 2}
        latency.plot(list(deployed), [result["ratio_to_dense"] for result in deployed.values()], **style)
        shares = [result["weight_bytes"] / dense["weight_bytes"] for result in deployed.values()]
        memory.plot(list(deployed), shares, **style)
    finish(latency, "Latency of one input, over the dense model", "{:g}")
    finish(memory, "Bytes for weights, over the dense model", "{:.0%}")
    latency.axhline(1, color=MUTED, linestyle="--", linewidth=1)
    latency.set_yticks([0.25, 0.5, 1, 2, 4, 8])
    memory.set_yticks([0.01, 0.02, 0.05, 0.1, 0.25, 0.5])
    memory.legend(frameon=False, labelcolor=INK)
    figure.savefig(HERE / "deployment.png")


def find(records: list[dict], model: str, candidate: str) -> dict:
    """The record of one candidate at batch 1."""
    return next(
        result for result in records if (result["model"], result["batch"], result["candidate"]) == (model, 1, candidate)
    )


def has(records: list[dict], model: str, candidate: str) -> bool:
    """Whether the candidate was measured: not every model can be made that small."""
    return any((result["model"], result["candidate"]) == (model, candidate) for result in records)


def finish(axes: Axes, title: str, form: str) -> None:
    """Logarithmic axes with plain numbers."""
    axes.set(xscale="log", yscale="log", xlabel="trainable parameters kept, per cent")
    axes.set_title(title, color=INK, loc="left", fontweight="bold")
    axes.set_xticks(COMPRESS)
    for axis, text in ((axes.xaxis, "{:g}%"), (axes.yaxis, form)):
        axis.set_major_formatter(FuncFormatter(lambda value, _, text=text: text.format(value)))
        axis.set_minor_locator(NullLocator())
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED)


if __name__ == "__main__":
    main()
