"""The same run across organisations: `floco flower new`, `floco flower demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from floco.cli.console import ConfigFile, Debug, Overrides, app, out_console, say, told
from floco.core.errors import FlocoError

flower_app = typer.Typer(no_args_is_help=True, help="The same run across organisations, on Flower (docs/flower.md).")
app.add_typer(flower_app, name="flower")


@flower_app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty or absent folder.")],
    config: ConfigFile = None,
    s: Overrides = None,
    debug: Debug = False,
) -> None:
    """Write a Flower app for a run, to be started with flwr run."""
    with told(debug):
        _needs_flower()
        from floco.flower.scaffold import write
        from floco.runs import session
        from floco.runs.config import read

        write(folder, session.settled(read(config, s or [])))
        say(f"the app is {folder}; its README.md says how to start it")


@flower_app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Where app, data, logs and results go; must be empty or absent. Default: a new folder under runs/.")] = None,
    s: Overrides = None,
    debug: Debug = False,
) -> None:
    """Run a federation of three sites on this machine: a real SuperLink, three real SuperNodes, embedded data. About three minutes."""
    with told(debug):
        _needs_flower()
        from floco.cli import views
        from floco.flower.demo import demonstrate

        folder = demonstrate(out, s or [], say)
        out_console.print(views.closing_table(folder / "run"))
        say(f"the server's run lies in {folder / 'run'}, each site's own in {folder / 'sites'}; take a model home, without the server:")
        say(f"floco export {folder / 'sites' / 'north'} --client north -o north.safetensors")


def _needs_flower() -> None:
    try:
        import flwr  # noqa: F401
    except ImportError as error:
        raise FlocoError("floco flower needs Flower, which is not installed: pip install 'floco[flower]'") from error
