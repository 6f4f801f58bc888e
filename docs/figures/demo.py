"""Draw `demo.png` from `benchmarks/results/demo.json`: the chart that `fxhash demo` draws.

Run it with `python docs/figures/demo.py`; it needs the extra `demo`.
"""

import json
from pathlib import Path

from fxhash.demo.chart import plot_results
from fxhash.demo.results import Result

HERE = Path(__file__).parent
RECORD = HERE.parent.parent / "benchmarks" / "results" / "demo.json"


def main(folder: Path = HERE) -> None:
    """Write the figure to a folder: that of this script if omitted."""
    record = json.loads(RECORD.read_text())
    results = [Result(**row) for row in record["results"]]
    plot_results(results, record["title"], record["images"]["test"], folder / "demo.png")


if __name__ == "__main__":
    main()
