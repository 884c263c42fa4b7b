"""The commands of `espan`."""

from __future__ import annotations

import signal
import sys
import warnings

import typer

from espan._version import __version__
from espan.cli import convert, doctor, evaluate, export, info, prepare, train, upscale, video
from espan.cli.messages import message
from espan.errors import EspanError

app = typer.Typer(
    name="espan",
    help="Super-resolution with the SPAN family of networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("upscale")(upscale.command)
app.command("video")(video.command)
app.command("evaluate")(evaluate.command)
app.command("info")(info.command)
app.command("convert")(convert.command)
app.command("export")(export.command)
app.command("prepare")(prepare.command)
app.command("train")(train.command)
app.command("doctor")(doctor.command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"espan {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def run() -> None:
    """Run the command line.  Errors that the user can fix are one sentence; the status is 1."""
    for stream in (sys.stdout, sys.stderr):
        # File names may not be valid UTF-8, and the terminal may not support all characters.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # As Ctrl-C does, an exception removes unfinished files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.showwarning = lambda text, *_: message("[yellow]espan: note:[/]", str(text))
    try:
        app()
    except BrokenPipeError:  # `espan ... | head`
        sys.exit(1)
    except EspanError as error:
        message("[bold red]espan: error:[/]", str(error))
        sys.exit(1)
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        message("[bold red]espan: error:[/]", named)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == 130:  # of typer, after Ctrl-C
            raise KeyboardInterrupt from None
        raise
