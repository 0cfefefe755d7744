"""The application, the consoles, common options, and the handling of errors and warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from floco.core.errors import FlocoError, RunFailed

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Personalized federated learning on a solution simplex.",
)
out_console = Console(soft_wrap=True)
err_console = Console(stderr=True, soft_wrap=True)

_CONFIG = typer.Argument(metavar="[CONFIG.toml]", help="Settings. Default: the embedded digits.")
ConfigFile = Annotated[Path | None, _CONFIG]
_OVERRIDE = typer.Option("-s", metavar="KEY=VALUE", help="Change a setting, e.g. -s training.rounds=50.")
Overrides = Annotated[list[str] | None, _OVERRIDE]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def say(text: str) -> None:
    """Print text without markup."""
    out_console.print(text, markup=False, highlight=False)


@contextmanager
def told(debug: bool) -> Iterator[None]:
    """Print an error as one message and exit: code 2 for wrong use, 1 for a failed run. Print warnings as lines."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        err_console.print(f"warning: {message}", style="yellow", markup=False, highlight=False)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    except FlocoError as error:
        if debug:
            err_console.print_exception()
        err_console.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1 if isinstance(error, RunFailed) else 2) from None
