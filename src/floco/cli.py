"""The command line: `floco run`, `resume`, `data`. Heavy imports happen inside commands, so that help is quick."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from floco.errors import FlocoError, RunFailed

if TYPE_CHECKING:
    from floco.loop import Progress
    from floco.training import Setup

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Personalized federated learning on a solution simplex.")
out_console = Console(soft_wrap=True)
err_console = Console(stderr=True, soft_wrap=True)

ConfigFile = Annotated[Path | None, typer.Argument(metavar="[CONFIG.toml]", help="Settings; without a file: the embedded digits.")]
Overrides = Annotated[list[str] | None, typer.Option("-s", metavar="KEY=VALUE", help="Change a setting, e.g. -s training.rounds=50.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def _told(debug: bool) -> Iterator[None]:
    """Turn errors into one message and an exit code: 2 for wrong use, 1 for a run that failed."""
    try:
        yield
    except FlocoError as error:
        if debug:
            err_console.print_exception()
        err_console.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1 if isinstance(error, RunFailed) else 2) from None


@app.command()
def run(
    config: ConfigFile = None,
    s: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; must be empty or absent. Default: runs/<name>-<time>.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Train one federation and leave each client with its own model."""
    with _told(debug):
        from floco import session
        from floco.config import read, to_toml

        settings = session.settled(read(config, s or []))
        if print_config:
            out_console.out(to_toml(settings), end="", highlight=False)
            return
        name = config.stem if config is not None else settings.data.source.partition(":")[0]
        path = out or Path("runs") / f"{name}-{settings.algorithm.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        setup = session.prepare(settings)
        session.create(settings, setup, path)
        out_console.print(_describe(setup), markup=False, highlight=False)
        _continue(path, setup, debug)


@app.command()
def resume(path: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")], debug: Debug = False) -> None:
    """Continue a stopped or killed run, to the same bits as if it had never stopped."""
    with _told(debug):
        _continue(path, None, debug)


@app.command()
def data(
    config: ConfigFile = None,
    s: Overrides = None,
    picture: Annotated[Path | None, typer.Option(help="Write the picture to this file (.png, .svg, .pdf).")] = None,
    debug: Debug = False,
) -> None:
    """Show who has what: clients by labels, sizes, heterogeneity."""
    with _told(debug):
        from floco import session, views
        from floco.config import read

        federation = session.federation(read(config, s or []))
        out_console.print(views.label_table(federation))
        out_console.print(views.summary(federation), markup=False, highlight=False)
        if picture is not None:
            views.label_picture(federation, picture)
            out_console.print(f"picture: {picture}", markup=False, highlight=False)


def _describe(setup: Setup) -> str:
    federation, training, layout = setup.federation, setup.training, setup.network.layout
    n = sum(t.numel() for t in setup.network.parameters.values())
    kept = f", {len(federation.held_out)} held out" if federation.held_out else ""
    return (
        f"{len(federation.clients)} clients{kept}, {federation.classes} classes, inputs {federation.shape}; model of {n:,} parameters in {len(layout.parameters)} tensors\n"
        f"{setup.algorithm}, {training.rounds} rounds of {max(1, round(training.fraction * len(federation.clients)))} clients"
    )


def _continue(path: Path, setup: Setup | None, debug: bool) -> None:
    """Carry a run directory to its last round, showing progress, and print the closing table."""
    from floco import session, views

    settings, store = session.reopen(path)
    try:
        setup = setup or session.prepare(settings)
        session.check(store, setup)
        store.rewind()
        start = store.load()
        if start.round == setup.training.rounds:
            out_console.print(f"{path} is finished: all {start.round} rounds are done", markup=False, highlight=False)
        else:
            with _shown(start.round, setup.training.rounds, debug) as watch:
                session.advance(setup, settings.run, store, start, watch)
    except KeyboardInterrupt:
        err_console.print(f"\nstopped; continue with: floco resume {path}", markup=False, highlight=False)
        raise typer.Exit(130) from None
    except RunFailed as error:
        raise RunFailed(f"{error}\ncontinue, once the cause is gone, with: floco resume {path}") from error
    finally:
        store.close()
    out_console.print(views.closing_table(path))
    out_console.print(f"the run lies in {path}", markup=False, highlight=False)


@contextmanager
def _shown(done: int, total: int, debug: bool) -> Iterator[Callable[[Progress], None]]:
    """Show rounds as they end: a bar on a terminal, else one line per evaluation."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns: list[Any] = [TextColumn("round"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()]
    with Bar(*columns, console=out_console, auto_refresh=False, disable=not out_console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)
        text = ""

        def watch(progress: Progress) -> None:
            nonlocal text
            for failure in progress.failures:
                err_console.print(f"left out: {failure}" + (f"\n{failure.trace}" if debug else ""), style="yellow", markup=False, highlight=False)
            if progress.evaluation is not None:
                row = progress.evaluation.history
                text = f"global {_percent(row['accuracy_global'])} personal {_percent(row['accuracy_personal'])}"
                if not out_console.is_terminal:
                    out_console.print(f"round {progress.round}/{total}: {text}", markup=False, highlight=False)
            bar.update(task, completed=progress.round, description=text, refresh=True)

        yield watch


def _percent(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def main() -> None:
    """Run the command line."""
    sys.path.insert(0, "")  # module:function is looked for where the user stands
    app()
