"""Write the tables of the front into `docs/accuracy.md`, from the records of `front.py` and `front_bytes.py`.

python benchmarks/front_table.py
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from front import PEAKS, PILOTS, Network, read_rows
from page_tables import RESULTS, ROOT, block, fill

FAMILIES = {"resnet": "ResNet", "convnext": "ConvNeXt"}


@dataclass(frozen=True)
class Point:
    """A network in so many bits: its runs differ in their seed alone.

    Attributes:
        network: as of `Network.label`.
        kind: as of `Network.kind`.
        setting: as of `Setting.label`.
        parameters: that were trained.
        fraction: of the dense network's parameters; 1 for a dense one.
        bits: of what is rounded; 32 as it was trained.
        size: bytes of the file, of the first seed; 0 if it was not measured.
        accuracies: on the test images, in per cent, of each seed.
    """

    network: str
    kind: str
    setting: str
    parameters: int
    fraction: float
    bits: int
    size: int
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy in per cent."""
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; 0 for one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0

    @property
    def is_compressed(self) -> bool:
        """Whether it is one of ours."""
        return self.kind.endswith("compressed")

    @property
    def title(self) -> str:
        """`"resnet8-width10"` in words."""
        return title(self.network)

    @property
    def accuracy(self) -> str:
        """Mean and standard deviation, or the one there is."""
        deviation = f" ± {self.deviation:.1f}" if len(self.accuracies) > 1 else ""
        return f"{self.mean:.1f}{deviation}"


def read_points(results: Path = RESULTS) -> list[Point]:
    """All networks of the front in all bits, from the most accurate to the least."""
    runs = rows_of("run", results)
    files = read_rows(results / "front_bytes.csv")
    by_network: dict[str, list[str]] = {}
    for name, row in runs.items():
        by_network.setdefault(row["network"], []).append(name)
    points = []
    for network, names in by_network.items():
        first = runs[names[0]]
        # Those that are trained in few bits are points of these alone.
        trained_bits = int(parsed(network)[-1] or 32)
        for bits in (32, 8, 4) if trained_bits == 32 else (trained_bits,):
            rounded = [files[f"{name}-{bits}"] for name in names if f"{name}-{bits}" in files]
            chosen = [runs[name] for name in names] if bits == trained_bits else rounded
            if chosen:
                accuracies = tuple(100 * float(row["test_accuracy"]) for row in chosen)
                size = int(rounded[0]["bytes"]) if rounded else 0
                parameters = int(first["trainable_after"])
                fraction = parameters / int(first["trainable_before"])
                points.append(
                    Point(network, first["kind"], first["setting"], parameters, fraction, bits, size, accuracies)
                )
    return sorted(points, key=lambda point: -point.mean)


def rows_of(stage: str, results: Path = RESULTS) -> dict[str, dict[str, str]]:
    """The rows of one stage of the plan, by name: `"pilot"`, `"peak"` or `"run"`."""
    rows = read_rows(results / "front.csv")
    return {name: row for name, row in rows.items() if name.startswith(f"{stage}-")}


def parsed(network: str) -> tuple[str | Any, ...]:
    """Family, depth, width, parameters and bits of a network's label; the last two are None if it has none."""
    found = re.fullmatch(r"([a-z]+)(\d+)-width(\d+)(?:-patch2)?(?:-to-(\d+))?(?:-(\d+)-bits)?", network)
    assert found is not None, network
    return found.groups()


def title(network: str) -> str:
    """The label of a network in words."""
    family, depth, width, parameters, bits = parsed(network)
    name = f"ResNet-{depth}" if family == "resnet" else f"`convnext{depth}`"
    name += "" if (family, width) == ("resnet", "16") else f" of width {width}"
    name += f", compressed to {int(parameters):,} in {bits} bits" if bits else ", compressed" if parameters else ""
    return name


def of_parameters(results: Path = RESULTS) -> Iterator[str]:
    """The networks by the parameters that are trained."""
    yield "| trained parameters | network | | test accuracy, % | seeds | setting |"
    yield "|--:|---|---|--:|--:|---|"
    points = [point for point in read_points(results) if point.bits == 32]
    for point in sorted(points, key=lambda point: (-size_class(point), -point.mean)):
        yield (
            f"| {point.parameters:,} | {point.title} | {form_title(point.kind)} | {point.accuracy} "
            f"| {len(point.accuracies)} | {setting_title(point.setting)} |"
        )


def size_class(point: Point) -> int:
    """Networks that are compared are in one: of about 28,000 parameters, 100,000, or more."""
    return sum(point.parameters > limit for limit in (50_000, 200_000))


def of_choices(results: Path = RESULTS) -> Iterator[str]:
    """The best compressed network of each size beside the best dense one, where there are both."""
    yield "| trained parameters | compress | to | train with | test accuracy, % | best dense network | accuracy, % |"
    yield "|--:|---|--:|---|--:|---|--:|"
    points = [point for point in read_points(results) if point.bits == 32]
    for of_size in (0, 1):
        dense, compressed = (
            [point for point in points if size_class(point) == of_size and point.is_compressed == kind]
            for kind in (False, True)
        )
        if dense and compressed:
            ours, theirs = compressed[0], dense[0]
            yield (
                f"| {ours.parameters:,} | {ours.title.removesuffix(', compressed')} | {ours.fraction:.0%} "
                f"| {setting_title(ours.setting)} | {ours.accuracy} | {theirs.title}, {theirs.parameters:,} "
                f"| {theirs.accuracy} |"
            )


def of_bytes(results: Path = RESULTS) -> Iterator[str]:
    """The networks in 32, 8 and 4 bits."""
    points = [point for point in read_points(results) if point.size]
    by_network: dict[str, dict[int, Point]] = {}
    for point in points:
        by_network.setdefault(point.network, {})[point.bits] = point
    yield "| network | | 32 bits: kB | accuracy, % | 8 bits: kB | accuracy, % | 4 bits: kB | accuracy, % |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    widest = [(forms[max(forms)], forms) for forms in by_network.values()]
    for first, forms in sorted(widest, key=lambda each: (-size_class(each[0]), -each[0].mean)):
        cells = [file_cells(forms.get(bits)) for bits in (32, 8, 4)]
        yield f"| {first.title} | {form_title(first.kind)} | {' | '.join(cells)} |"


def file_cells(point: Point | None) -> str:
    """Kilobytes and accuracy; two empty cells for none."""
    return f"{point.size / 1e3:.1f} | {point.accuracy}" if point else " | "


def of_pilots(results: Path = RESULTS) -> Iterator[str]:
    """What each setting reached for each kind of network."""
    rows = rows_of("pilot", results)
    by_kind = {network.kind: column(rows.values(), network) for network in PILOTS}
    yield f"| setting | {' | '.join(map(kind_title, by_kind))} |"
    yield f"|---|{'--:|' * len(by_kind)}"
    names = dict.fromkeys(name for cells in by_kind.values() for name in cells)
    # Such as `AdamW, 0.01`, then what is changed from the best of these, then SGD and what is changed from its best.
    for name in sorted(names, key=lambda name: (name.split(",")[0], "best" in name)):
        yield f"| {name} | {' | '.join(cells.get(name, '') for cells in by_kind.values())} |"


def column(rows: Iterable[Mapping[str, str]], network: Network) -> dict[str, str]:
    """Accuracies in per cent of a network's pilots, by setting, the best one bold; the best rate is called so."""
    return {pilot_title(name): cell for name, cell in cells_of(rows, network).items()}


def of_peaks(results: Path = RESULTS) -> Iterator[str]:
    """What each setting reached in long runs with small images."""
    yield "| network | | setting | test accuracy, % |"
    yield "|---|---|---|--:|"
    rows = rows_of("peak", results)
    for network in PEAKS:
        for setting, cell in cells_of(rows.values(), network).items():
            yield f"| {title(network.label)} | {form_title(network.kind)} | {setting_title(setting)} | {cell} |"


def cells_of(rows: Iterable[Mapping[str, str]], network: Network) -> dict[str, str]:
    """Accuracies in per cent of a network, by setting, the best one bold."""
    accuracies = {row["setting"]: float(row["test_accuracy"]) for row in rows if row["network"] == network.label}
    best = max(accuracies.values(), default=0.0)
    shown = {name: f"{100 * accuracy:.1f}" if accuracy else "diverged" for name, accuracy in accuracies.items()}
    return {name: f"**{cell}**" if accuracies[name] == best else cell for name, cell in shown.items()}


def form_title(kind: str) -> str:
    """Whether a kind of network is ours, in a cell."""
    return "**fxhash**" if kind.endswith("compressed") else "dense"


def kind_title(kind: str) -> str:
    """`"resnet dense"` in words."""
    family, form = kind.split()
    return f"{form} {FAMILIES[family]}"


def pilot_title(label: str) -> str:
    """The label of a pilot's setting in words, where a kind of network's best rate is called so."""
    optimizer, *_ = label.split()
    words = setting_title(label).split(", ")
    is_changed = len(words) > (3 if optimizer == "sgd" else 2)
    return ", ".join([words[0], "the best of these", words[-1]]) if is_changed else ", ".join(words)


def setting_title(label: str) -> str:
    """The label of a setting in words.

    Example:
        >>> setting_title("sgd 0.3 weight-decay 0.0005")
        'SGD, 0.3, weight decay 0.0005'
    """
    optimizer, rate, *changes = label.split()
    names = [f"{name.replace('-', ' ')} {value}" for name, value in zip(changes[::2], changes[1::2], strict=True)]
    return ", ".join([{"sgd": "SGD", "adamw": "AdamW"}[optimizer], rate, *names])


# By the page that they are in.
TABLES = {
    ROOT / "docs" / "accuracy.md": {
        "the front": of_parameters,
        "the front by bytes": of_bytes,
        "pilots of the front": of_pilots,
        "peaks of the front": of_peaks,
    },
    ROOT / "docs" / "guide" / "choosing.md": {"networks to compress": of_choices},
}


def main() -> None:
    for page, tables in TABLES.items():
        fill(page, {name: block(name, lines()) for name, lines in tables.items()})


if __name__ == "__main__":
    main()
