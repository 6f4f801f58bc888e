"""Asserts and checks that raise: traced with the answer that goes on, and asked again at each call."""

from __future__ import annotations

import pytest
import torch

import fxhash
from tests.capture import checks
from tests.capture.checks import Checks
from tests.capture.reasons import reasons
from tests.helpers import assert_same_outputs


@pytest.mark.parametrize(
    ("name", "error"),
    [
        *((name, AssertionError) for name in ("asserts", "asserts_both", "asserts_a_chain", "asserts_not")),
        ("asserts_on_lines", AssertionError),
        *((name, ValueError) for name in ("raises", "raises_for_either", "raises_after_another_branch")),
    ],
)
def test_sizes_are_checked_at_each_call(name, error):
    model = Checks(getattr(checks, name))
    gm = fxhash.transform(model, 0.9, seed=0)
    assert reasons(gm) == {}
    lowered = fxhash.lower_for_deploy(gm)
    fits, too_long = torch.randn(3, 32), torch.randn(9, 32)
    assert_same_outputs(gm, lowered, fits)
    for each in (model, fxhash.trace(model), gm, lowered):
        with pytest.raises(error):
            each(too_long)
    with pytest.raises(error, match=r"\(line \d+ of \w+\)$"):
        lowered(too_long)


def test_values_are_checked_at_each_call():
    traced = fxhash.trace(Checks(checks.asserts_of_values))
    assert reasons(traced) == {}
    with pytest.raises(AssertionError, match=r"\(x < 100\)\.all\(\) \(line \d+ of asserts_of_values\)"):
        traced(torch.full((2, 32), 200.0))


@pytest.mark.parametrize(
    "name",
    [
        *("asserts_either", "asserts_one_of", "asserts_the_smaller", "asserts_any", "asserts_if", "asserts_and_more"),
        *("asserts_the_place", "raises_its_own", "does_more_than_raise"),
    ],
)
def test_other_tests_are_refused(name):
    model = Checks(getattr(checks, name))
    traced = fxhash.trace(model)
    assert list(reasons(traced)) == ["opaque_part"]
    assert_same_outputs(model, traced, torch.randn(3, 32))


def test_export_keeps_the_checks():
    gm = fxhash.transform(Checks(checks.asserts), 0.9, seed=0).eval()
    program = torch.export.export(gm, (torch.randn(3, 32),), strict=False)
    assert_same_outputs(gm, program.module(), torch.randn(3, 32))
    compiled = torch.compile(gm, backend="eager", fullgraph=True)
    assert_same_outputs(gm, compiled, torch.randn(3, 32))
