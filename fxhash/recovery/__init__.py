"""What a compressed model lost, brought back by learning from the original on inputs without labels."""

from fxhash.recovery.recovering import Recovery, recover

__all__ = ["Recovery", "recover"]
