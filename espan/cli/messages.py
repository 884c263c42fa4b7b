"""Errors and notes on the terminal."""


def message(label: str, text: str) -> None:
    """Print a line to stderr; the label may have markup."""
    # Importing rich takes time, in which `main` must already handle Ctrl-C.
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"{label} {escape(text)}")
