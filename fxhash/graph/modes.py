"""What follows the mode of a model at each call of its graph."""

from __future__ import annotations

from typing import Any

from fxhash.graph.recorded import recorded


@recorded
def by_mode(training: bool, in_training: Any, in_evaluation: Any) -> Any:
    """One of two numbers, as a forward chooses that branches on a training flag.

    Args:
        training: the flag.
        in_training: what it is if the flag is set.
        in_evaluation: what it is if not.
    """
    return in_training if training else in_evaluation
