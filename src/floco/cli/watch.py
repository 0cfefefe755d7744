"""Looking at runs and at this machine: `floco status`, `doctor`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from floco.cli.console import Debug, Json, app, emit, out_console, report_errors
from floco.core.errors import FlocoError

_RUNS = typer.Argument(metavar="[RUN...]", help="Runs, comparisons, or folders of them. Default: those in runs/.")
_WATCH = typer.Option("--watch", help="Show it again every second, until nothing runs any more or Ctrl-C.")
_EVERY = 1.0  # seconds


@app.command()
def status(
    paths: Annotated[list[Path] | None, _RUNS] = None,
    watch: Annotated[bool, _WATCH] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how far runs and comparisons are: rounds, pace, remaining time, and which clients failed."""
    with report_errors(debug, as_json):
        from floco.cli.progress_table import show
        from floco.runs.status import as_plain, look

        chosen = paths or [Path("runs")]
        if not watch:
            groups = look(chosen)
            out_console.print(show(groups))
            emit(as_json, **as_plain(groups))
            return
        if as_json or not out_console.is_terminal:
            raise FlocoError("--watch is for a terminal, and not for --json: call floco status again instead")
        _watch(chosen)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Show what this machine and installation can do: versions, devices, workers, memory, extras."""
    with report_errors(debug, as_json):
        from floco.cli import progress_table
        from floco.runs.doctor import examine

        found = examine()
        out_console.print(progress_table.describe_machine(found, min(80, out_console.width)))
        emit(as_json, **found)


def _watch(paths: list[Path]) -> None:
    from rich.live import Live

    from floco.cli.progress_table import show
    from floco.runs.status import look

    try:
        with Live(show(groups := look(paths)), console=out_console, auto_refresh=False) as live:
            while any("running" in (group.state, *(run.state for run in group.runs)) for group in groups):
                time.sleep(_EVERY)
                live.update(show(groups := look(paths)), refresh=True)
    except KeyboardInterrupt:
        return
