"""Runs across organisations on Flower: `floco flower new`, `floco flower demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from floco.cli.console import ConfigFile, Debug, Json, Overrides, app, emit, out_console, report_errors, say
from floco.core.errors import FlocoError

flower_app = typer.Typer(no_args_is_help=True, help="Run across organisations, on Flower (docs/flower.md).")
app.add_typer(flower_app, name="flower")


@flower_app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty or absent folder.")],
    config: ConfigFile = None,
    s: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a Flower app for a run, which flwr run starts.

    Its README.md says how to start SuperLink and SuperNodes; a second SuperNode on one machine needs --port.
    """
    with report_errors(debug, as_json):
        _needs_flower()
        from floco.flower.scaffold import write
        from floco.runs import source
        from floco.runs.toml import read

        write(folder, source.resolve_paths(read(config, s or [])))
        say(f"the app is {folder}; its README.md says how to start it")
        emit(as_json, app=folder)


_OUT = typer.Option(help="Folder for everything; must be empty or absent. Default: a new folder under runs/.")


@flower_app.command()
def demo(
    out: Annotated[Path | None, _OUT] = None, s: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Run a SuperLink and three SuperNodes with embedded data on this machine (about three minutes)."""
    with report_errors(debug, as_json):
        _needs_flower()
        from floco.cli import views
        from floco.flower.demo import demonstrate

        folder = demonstrate(out, s or [], say)
        out_console.print(views.closing_table(folder / "run"))
        sites = folder / "sites"
        say(f"the server's run: {folder / 'run'}; the sites' own: {sites}; export a model without the server:")
        say(f"floco export {sites / 'north'} --client north -o north.safetensors")
        emit(as_json, run=folder / "run", sites=sites, evaluation=views.last_row(folder / "run"))


def _needs_flower() -> None:
    try:
        import flwr  # noqa: F401
    except ImportError as error:
        raise FlocoError("floco flower needs Flower, which is not installed: pip install 'floco[flower]'") from error
