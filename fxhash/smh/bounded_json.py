"""JSON from a stranger: what it can grow to in memory is counted before any of it becomes a value."""

from __future__ import annotations

import json
from typing import Any

from fxhash.errors import PlanError

# More than a plan of as many parameters as it may have needs. Python takes about 60 bytes for a value, and 200 for an
# object with one.
_MOST_CHARACTERS = 2**24
_MOST_VALUES = 2**19
_MOST_CONTAINERS = 2**16
# As many as the largest integer of 64 bits has.
_MOST_DIGITS = 19


def read_json(text: str) -> Any:
    """What `json.loads` gives, in bounded time and memory.

    Raises:
        PlanError: if the text is longer, or holds more values, or integers of more digits, than any plan would.
        ValueError: if it is not JSON.
        RecursionError: if lists or objects lie too deep inside of each other.
    """
    if not text.isascii():
        raise PlanError("it holds characters that fxhash.save writes as escapes")
    containers = text.count("[") + text.count("{")
    if len(text) > _MOST_CHARACTERS or containers > _MOST_CONTAINERS or text.count(",") > _MOST_VALUES:
        raise PlanError(
            f"it has {len(text):,} characters, {containers:,} lists and objects and {text.count(','):,} commas: more "
            f"than {_MOST_CHARACTERS:,}, {_MOST_CONTAINERS:,} or {_MOST_VALUES:,}"
        )
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _MOST_DIGITS:
        raise PlanError(f"it holds an integer of {len(digits):,} digits")
    return int(digits)
