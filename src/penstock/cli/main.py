"""The `penstock` command: its list of commands, and how errors look.

Each group of commands is a file of functions, registered here; what they do is a call or two of the
library. An error of the library is one line and exit code 2, Ctrl-C is exit code 130; neither shows a
traceback, unless `--debug` stands before the command.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Annotated

import typer

from penstock import __version__
from penstock.cli import blocks, cache, download, export_bq, index, inspect, plan, search, tokenize, verify
from penstock.demo.command import demo
from penstock.errors import PenstockError

app = typer.Typer(
    name="penstock",
    help="Training data for PyTorch: from raw text to exact, resumable batches.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True)

app.command()(demo)
app.command()(search.search)
app.command()(download.download)
app.command()(blocks.blocks)
app.command()(tokenize.tokenize)
app.command()(index.index)
app.command()(inspect.inspect)
app.command()(verify.verify)
app.command()(plan.plan)
app.command("export-bq")(export_bq.export_bq)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(cache.app, name="cache")
tokenizer_app.command("train")(tokenize.train)

_debug = False
REPEAT_EVERY_S = 1.0


class _Retries(logging.Handler):
    """Prints that requests are tried again, a line a second at most: else a long wait looks like a hang."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REPEAT_EVERY_S
            typer.echo(record.getMessage(), err=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Training data for PyTorch: from raw text to exact, resumable batches."""
    global _debug
    _debug = debug


def main() -> None:
    """Run the command line and exit."""
    log = logging.getLogger("penstock.store")
    log.setLevel(logging.INFO)
    log.addHandler(_Retries())
    try:
        app()
    except PenstockError as error:
        if _debug:
            raise
        text = "\n".join([str(error), *getattr(error, "__notes__", [])])
        typer.secho(f"error: {text}", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
