"""The command line: one file per command."""

from espan.cli.main import main

__all__ = ["main"]
