"""Modes of operators of which no other thread knows."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode


class ThreadMode(TorchDispatchMode):
    """A mode that is entered in its own thread alone.

    `TorchDispatchMode` notes for all threads that there is a mode, and puts back what it found: where those of two
    threads overlap the note stays, and `torch.compile` compiles nothing from then on.
    """

    def __enter__(self) -> Any:
        """Run the operations of this thread by the mode."""
        _push_mode(self)
        return self

    def __exit__(self, *error: object) -> None:
        """Run them as before."""
        _pop_mode()
