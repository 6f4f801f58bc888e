"""Text that comes from files and models, such as names, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text, with an escape for each character that a terminal doesn't show or would obey.

    These are control characters, line breaks among them, those that change the direction of text, and those without a
    width.

    Example:
        >>> print(printable("conv1\x1b[2J"))
        conv1\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shortened(text: str, most: int = 300) -> str:
    """The text in one printable line, cut to a number of characters.

    Args:
        text: such as the message of another error.
        most: how many characters of it are kept.
    """
    return printable(" ".join(text[:most].split())) + (" ..." if len(text) > most else "")
