"""What the demonstration says of its figures: the sentence follows them, and nothing is cut off."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from fxhash.demo.results import Result, conclusion, explanation, results_table
from fxhash.demo.work import Work

TEST_IMAGES = 3000


def result(name: str, method: str, accuracy: float, file_bytes: int, ratio: float, resident: int = 600_000) -> Result:
    parameters = {"dense": 269_434, "narrower": 26_785}.get(method, 26_943)
    return Result(name, method, parameters, accuracy, accuracy, "file", file_bytes, ratio, ratio, resident)


DENSE = result("dense", "dense", 0.975, 1_000_000, 1.0, 1_000_000)
FOLDED = result("dense, folded", "folded", 0.975, 1_000_000, 0.7)
NARROWER = result("dense, width 5", "narrower", 0.965, 120_000, 0.7)
INT8 = result("int8", "int8", 0.974, 320_000, 0.8, 250_000)
SMALL = result("fxhash 10 %", "fxhash", 0.974, 125_000, 0.9)
EIGHT = result("fxhash 10 %, 8 bits", "fxhash int8", 0.974, 62_500, 0.9)
SMALLER = replace(result("fxhash 2 %", "fxhash", 0.9, 50_000, 0.9), parameters=5_388)
ALL = (DENSE, FOLDED, NARROWER, INT8, SMALL, EIGHT, SMALLER)


def sentence(**changes: Result) -> str:
    return conclusion([changes.get(each.method, each) for each in ALL if each is not SMALLER] + [SMALLER], TEST_IMAGES)


def test_the_sentence() -> None:
    assert conclusion(ALL, TEST_IMAGES) == (
        "fxhash 10 % is as accurate as dense and 0.9 points more accurate than the narrower network of as many "
        "parameters, in a file 8.0 times smaller than dense (16 times smaller with factors in 8 bits). "
        "It is faster than dense (0.90 of its latency), "
        "slower than dense, folded (0.70), dense, width 5 (0.70) and int8 (0.80). "
        "Its weights take 60% of the dense memory, those of int8 25%. "
        "In 8 bits alone, dense is as accurate as fxhash 10 %, in a file 3.1 times smaller."
    )


def test_what_is_lost_is_said() -> None:
    text = sentence(fxhash=replace(SMALL, accuracy=0.95, ratio=1.5, file_bytes=2_000_000))
    assert "is 2.5 points less accurate than dense and 1.5 points less accurate than the narrower network" in text
    assert "in a file 2.0 times larger than dense" in text
    assert "It is slower than dense (1.50 of its latency), slower than" in text
    assert "In 8 bits alone, dense is 2.4 points more accurate than fxhash 10 %" in text


@pytest.mark.parametrize(
    ("dense", "narrower", "expected"),
    [
        (0.99, 0.96, "is 1.6 points less accurate than dense but 1.4 points more accurate than the narrower"),
        (0.99, 0.974, "is 1.6 points less accurate than dense but as accurate as the narrower"),
        (0.974, 0.99, "is as accurate as dense but 1.6 points less accurate than the narrower"),
        (0.974, 0.974, "is as accurate as dense and as accurate as the narrower"),
        (0.95, 0.96, "is 2.4 points more accurate than dense and 1.4 points more accurate than the narrower"),
    ],
)
def test_accuracies_within_their_error_are_equal(dense: float, narrower: float, expected: str) -> None:
    text = sentence(dense=replace(DENSE, accuracy=dense), narrower=replace(NARROWER, accuracy=narrower))
    assert text.startswith(f"fxhash 10 % {expected}")


@pytest.mark.parametrize(
    ("ratio", "word"), [(0.94, "faster than"), (0.96, "as fast as"), (1.04, "as fast as"), (1.06, "slower than")]
)
def test_five_per_cent_of_latency_are_noise(ratio: float, word: str) -> None:
    text = sentence(fxhash=replace(SMALL, ratio=ratio), folded=replace(FOLDED, ratio=1.2))
    assert f"It is {word} dense ({ratio:.2f} of its latency)" in text
    assert "faster than dense, folded (1.20)" in text


def test_without_int8() -> None:
    text = conclusion([each for each in ALL if each is not INT8], TEST_IMAGES)
    assert "int8" not in text
    assert "8 bits alone" not in text
    assert text.endswith("Its weights take 60% of the dense memory.")


def test_nothing_is_cut_off_at_80_columns() -> None:
    wide = replace(EIGHT, parameters=1_234_567, file_bytes=12_345_678, milliseconds=123.45, ratio=12.34, accuracy=1.0)
    file = io.StringIO()
    Console(file=file, width=80).print(results_table([DENSE, wide]))
    for cell in ("fxhash 10 %, 8 bits", "1,234,567", "100.0%", "12,346", "123.45", "12.34", "1,000"):
        assert cell in file.getvalue()
    assert "…" not in file.getvalue()
    text = explanation(ALL, TEST_IMAGES, Work())
    assert max(map(len, text.splitlines())) <= 80
    assert "standard error 0.3 points" in re.sub(r"\s+", " ", text)
    assert "up to 50% of the dense bytes" in re.sub(r"\s+", " ", text)
