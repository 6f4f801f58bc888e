"""The `fxhash` command."""

from fxhash.cli.app import create_app, main

__all__ = ["create_app", "main"]
