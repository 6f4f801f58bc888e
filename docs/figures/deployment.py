"""Draw `deployment.png` from the records of `benchmarks/deploy.py`: latency and memory of deployed models.

Run it with `python docs/figures/deployment.py`; it needs matplotlib.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure

from fxhash.training.figure_style import MARKERS, MUTED, PALETTE, figure_style, plain_log_axis

HERE = Path(__file__).parent
RECORDS = HERE.parent.parent / "benchmarks" / "results"
MODELS = {
    "resnet34": "ResNet-34, CIFAR stem",
    "resnet50": "ResNet-50",
    "vit_b_16": "ViT-B/16",
    "mobilenet_v3_large": "MobileNetV3 Large",
    "encoder": "6-layer encoder of BERT's size",
    "recommender": "recommender of two tables",
}
COMPRESS = (1, 2, 5, 10, 25)


def main(folder: Path = HERE) -> None:
    """Write the figure to a folder: that of this script if omitted."""
    records = [
        result for file in sorted(RECORDS.glob("deploy_*.json")) for result in json.loads(file.read_text())["results"]
    ]
    with figure_style():
        figure = Figure(figsize=(13, 5), dpi=100)
        latency, memory = figure.subplots(1, 2)
        for (model, label), color, marker in zip(MODELS.items(), PALETTE, MARKERS, strict=True):
            dense = find(records, model, "dense")
            deployed = {
                compress: find(records, model, f"fxhash {compress}% aspect 16")
                for compress in COMPRESS
                if has(records, model, f"fxhash {compress}% aspect 16")
            }
            style = {"color": color, "marker": marker, "label": label}
            latency.plot(list(deployed), [result["ratio_to_dense"] for result in deployed.values()], **style)
            shares = [result["weight_bytes"] / dense["weight_bytes"] for result in deployed.values()]
            memory.plot(list(deployed), shares, **style)
        latency.set_title("Latency of one input, over the dense model")
        latency.axhline(1, color=MUTED, linestyle="--", linewidth=1)
        plain_log_axis(latency.yaxis, "{:g}", (0.25, 0.5, 1, 2, 4, 8))
        memory.set_title("Bytes for weights, over the dense model")
        plain_log_axis(memory.yaxis, "{:.0%}", (0.01, 0.02, 0.05, 0.1, 0.25, 0.5))
        for axes in (latency, memory):
            axes.set_xlabel("trainable parameters kept, per cent")
            plain_log_axis(axes.xaxis, "{:g}%", COMPRESS)
        memory.legend()
        figure.savefig(folder / "deployment.png")


def find(records: list[dict], model: str, candidate: str) -> dict:
    """The record of one candidate at batch 1."""
    return next(
        result for result in records if (result["model"], result["batch"], result["candidate"]) == (model, 1, candidate)
    )


def has(records: list[dict], model: str, candidate: str) -> bool:
    """Whether the candidate was measured: not every model can be made that small."""
    return any((result["model"], result["candidate"]) == (model, candidate) for result in records)


if __name__ == "__main__":
    main()
