"""The command line: one file per command.

The commands import PyTorch, which takes seconds, so `main` imports them where it handles errors and
Ctrl-C.
"""

import sys

from espan.cli.messages import message


def main() -> None:
    """The `espan` command."""
    try:
        try:
            from espan.cli.commands import run
        except ImportError as error:
            if error.name != "espan_kernels":
                raise
            message("[bold red]espan: error:[/]", str(error))
            sys.exit(1)
        run()
    except KeyboardInterrupt:
        message("espan:", "interrupted")
        sys.exit(130)
