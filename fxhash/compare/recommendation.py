"""Which method, and with which options, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from fxhash.compare.rows import OpaquePart, Row

# What a measurement on a busy machine may be off by.
_NOISE = 0.05
_MANY_OPAQUE = 0.2
# A smaller gain in 8 bits is none.
_LEAST_SAVED = 0.8
# Trained parameters up to which a compressed network was no less accurate than any dense one of its size: see
# `docs/accuracy.md`.
_AHEAD_OF_DENSE = 30_000


def recommend(rows: Sequence[Row], opaque_parts: Sequence[OpaquePart], is_separable: bool) -> str:
    """A method and its options in a few sentences.

    Of the sizes, the largest that is not slower than dense is recommended, since it loses least accuracy, and of its
    runtimes the faster one; if all are slower, the one that loses least time.

    Args:
        rows: of a comparison, the dense model first.
        opaque_parts: what could not be traced.
        is_separable: whether a compressed model has separable convolutions.
    """
    dense = rows[0].file_bytes["float32"]
    int8 = next((row for row in rows if row.method == "int8"), None)
    compressed = [row for row in rows if row.method == "fxhash"]
    sentences = []
    saves = int8 is not None and _smallest_file(int8) < _LEAST_SAVED * dense
    if int8 is not None and not saves:
        sentences.append("int8 saves next to nothing here: most weights are in layers that it leaves as they are.")
    elif int8 is not None:
        sentences.append(
            f"If {dense / _smallest_file(int8):.1f} times fewer bytes are enough, take int8, which needs no "
            f"training and here takes {relative_latency(int8, rows):.2f} times the dense latency{_in(int8)}."
        )
    best = _best(compressed, rows)
    smallest = _files_of(best, compressed)
    options = f"compress={best.compress:g}"
    if int8 is not None and saves and min(smallest.values()) >= _smallest_file(int8):
        sentences.append(f"fxhash with {options} is no smaller than that: give a smaller --compress.")
    else:
        sentences.append(
            f"{'For less' if saves else 'With fxhash'}, train with {options}: "
            f"{dense / smallest['float32']:.1f} times fewer bytes than float32, "
            f"{dense / smallest['int8']:.1f} times with factors stored in 8 bits, at "
            f"{relative_latency(best, rows):.2f} times the dense latency{_in(best)}."
        )
    if best.parameters > _AHEAD_OF_DENSE:
        sentences.append(
            f"With as many as {best.parameters:,} trained parameters, a smaller dense network may be as accurate: "
            "train one beside it."
        )
    if relative_latency(best, rows) > 1 + _NOISE:
        ways = "memory_budget=... of lower_for_deploy caches weights"
        if is_separable:
            ways += ", and separable=False of transform keeps convolutions regular: less accurate, at times faster"
        sentences.append(f"Warning: every compressed form is slower than the dense model here; {ways}.")
    share = sum(part.share for part in opaque_parts)
    if share > _MANY_OPAQUE:
        sentences.append(
            f"{share:.0%} of the generated weights are in submodules that can't be traced, which costs speed."
        )
    return " ".join(sentences)


def relative_latency(row: Row, rows: Sequence[Row]) -> float:
    """Latency over that of the dense model in the same runtime."""
    dense = next((each for each in rows if (each.method, each.runtime) == ("dense", row.runtime)), rows[0])
    return row.ratio / dense.ratio


def _best(compressed: Sequence[Row], rows: Sequence[Row]) -> Row:
    fast = [row for row in compressed if relative_latency(row, rows) <= 1 + _NOISE]
    if not fast:
        return min(compressed, key=lambda row: relative_latency(row, rows))
    return max(fast, key=lambda row: (row.compress or 0, -row.milliseconds))


def _files_of(best: Row, compressed: Sequence[Row]) -> dict[str, int]:
    """The files of `fxhash.save` at the size of a row, whatever its runtime."""
    same = [row for row in compressed if row.compress == best.compress and "int8" in row.file_bytes]
    return dict(same[0].file_bytes)


def _smallest_file(row: Row) -> int:
    return min(row.file_bytes.values())


def _in(row: Row) -> str:
    return f" ({row.runtime})"
