"""What a trace took for granted, checked again at each call of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxhash.errors import TransformError
from fxhash.graph.recorded import recorded


@recorded
def of_length(values: Sequence[Any], count: int) -> Sequence[Any]:
    """The same values, of which there must be as many as there were in the trace.

    Raises:
        TransformError: if there are more or less.
    """
    if len(values) != count:
        raise TransformError(
            f"the model was traced with {count} values where there are {len(values)} now: give transform "
            "example_inputs of this size, or capture='modules'"
        )
    return values
