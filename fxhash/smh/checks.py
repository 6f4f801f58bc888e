"""Numbers that a plan is made with: what is a fraction, an aspect, a count."""

from __future__ import annotations

import math
import numbers

from fxhash.errors import PlanError


def check_fraction(compress: float) -> None:
    """Raise PlanError unless `compress` is more than 0 and at most 1."""
    if not _is_number(compress) or not 0 < compress <= 1:
        raise PlanError(
            f"compress={compress!r} is not a fraction: give trainable parameters after over before, "
            "more than 0 and at most 1, such as compress=0.1"
        )


def check_aspect(aspect: float) -> None:
    """Raise PlanError unless `aspect` is positive and finite."""
    if not _is_number(aspect) or not 0 < aspect < math.inf:
        raise PlanError(f"aspect={aspect!r} is not a positive, finite number: 1 is square, 4 is four times as tall")


def is_count(value: object) -> bool:
    """Whether a value is an integer, zero or more; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
