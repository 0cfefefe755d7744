"""The application, the consoles, common options, and the handling of errors and warnings."""

from __future__ import annotations

import codecs
import io
import json
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from floco import __version__
from floco.core.errors import FlocoError, RunFailed

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out_console = Console(soft_wrap=True)
err_console = Console(stderr=True, soft_wrap=True)

_CONFIG = typer.Argument(metavar="[CONFIG.toml]", help="Settings. Default: the embedded digits.")
ConfigFile = Annotated[Path | None, _CONFIG]
_OVERRIDE = typer.Option("-s", metavar="KEY=VALUE", help="Change a setting, e.g. -s training.rounds=50.")
Overrides = Annotated[list[str] | None, _OVERRIDE]
_JSON = typer.Option("--json", help="Print the result as one JSON object, and all else on stderr.")
Json = Annotated[bool, _JSON]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"floco {__version__}")
        raise typer.Exit


_VERSION = typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")


@app.callback()
def _start(version: Annotated[bool, _VERSION] = False) -> None:
    """Personalized federated learning on a solution simplex."""


def print_in_any_encoding() -> None:
    r"""Let streams write characters that their encoding lacks as escapes, `\u2500`, which TOML and JSON know."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        found = [ord(c) for c in error.object[error.start : error.end]]
        return "".join(f"\\u{n:04x}" if n < 2**16 else f"\\U{n:08x}" for n in found), error.end

    codecs.register_error("floco", escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="floco")


def say(text: str) -> None:
    """Print text without markup."""
    out_console.print(text, markup=False, highlight=False)


def note(text: str) -> None:
    """Print a warning as one line on stderr."""
    err_console.print(f"warning: {text}", style="yellow", markup=False, highlight=False)


def emit(as_json: bool, **result: Any) -> None:
    """Print a command's result as one JSON object, if that was asked for; missing numbers are null."""
    if as_json:
        sys.stdout.write(json.dumps(_plain(result), allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


@contextmanager
def report_errors(debug: bool, as_json: bool = False) -> Iterator[None]:
    """Print an error as one message and exit: code 2 for wrong use, 1 for a failed run. Print warnings as lines.

    With `as_json`, text goes to stderr: stdout has the result only.
    """
    out_console.stderr = as_json

    def show(message: Warning | str, *_: object, **__: object) -> None:
        note(str(message))

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    except FlocoError as error:
        if debug:
            err_console.print_exception()
        err_console.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1 if isinstance(error, RunFailed) else 2) from None
