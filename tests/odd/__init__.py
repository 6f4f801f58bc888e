"""Odd modules, each named for its trait: what a trace may freeze, lose or share in silence.

`ODD` has them all, by name, each with the calls that show the oddity. `tests/test_faithfulness.py` says what must hold
for every one of them.
"""

from tests.odd import contexts, functions, in_place, layers, modes, none_and_identity, numbers, state, weights
from tests.odd.registry import ODD, Call, Inputs, Odd

__all__ = [
    "ODD",
    "Call",
    "Inputs",
    "Odd",
    "contexts",
    "functions",
    "in_place",
    "layers",
    "modes",
    "none_and_identity",
    "numbers",
    "state",
    "weights",
]
