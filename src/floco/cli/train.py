"""Training and inspection: `floco run`, `compare`, `resume`, `report`, `data`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from floco.cli.console import ConfigFile, Debug, Overrides, app, err_console, out_console, say, told
from floco.core.errors import RunFailed

if TYPE_CHECKING:
    from floco.analysis.comparison import Comparison
    from floco.client.setup import Setup
    from floco.server.rounds import Progress

_OUT = typer.Option(help="Run directory; must be empty or absent. Default: runs/<name>-<time>.")
_COMPARISON = typer.Option(help="Directory; must be empty or absent. Default: runs/compare-<name>-<time>.")
_METHODS = typer.Option("-a", metavar="A,B,...", help="Methods; the first is tested against the others.")
_TUNE = typer.Option("--tune", help="First try six settings per method, validated on a part of the training data.")
_PAGE = typer.Option(
    "-o", metavar="FILE.html", help="The page. Default: report.html in the directory, or here for several."
)
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and exit.")]


@app.command()
def run(
    config: ConfigFile = None,
    s: Overrides = None,
    out: Annotated[Path | None, _OUT] = None,
    print_config: PrintConfig = False,
    debug: Debug = False,
) -> None:
    """Train a federation: one global model, and one model per client."""
    with told(debug):
        from floco.runs import session
        from floco.runs.config import read, to_toml

        settings = session.settled(read(config, s or []))
        if print_config:
            out_console.out(to_toml(settings), end="", highlight=False)
            return
        name = config.stem if config is not None else settings.data.source.partition(":")[0]
        path = out or Path("runs") / f"{name}-{settings.algorithm.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        setup = session.prepare(settings)
        session.create(session.placed(settings, setup), setup, path)
        say(_describe(setup))
        _continue(path, setup, debug)


@app.command()
def compare(
    config: ConfigFile = None,
    algorithms: Annotated[str, _METHODS] = "floco,floco+,fedavg,fedavg+ft,ditto,local",
    seeds: Annotated[int, typer.Option(help="Number of seeds, starting with the configuration's.")] = 3,
    s: Overrides = None,
    out: Annotated[Path | None, _COMPARISON] = None,
    tune: Annotated[bool, _TUNE] = False,
    debug: Debug = False,
) -> None:
    """Compare several methods on the same data, splits, client samples and budget.

    -s KEY=VALUE applies to all methods, -s METHOD.KEY=VALUE (e.g. ditto.pull=0.5) to one.
    """
    with told(debug):
        from floco.algorithms import ALGORITHMS
        from floco.analysis import comparison
        from floco.runs import session
        from floco.runs.config import override, read

        own: dict[str, dict[str, Any]] = {}
        common: list[str] = []
        for text in s or []:
            method, _, rest = text.partition(".")
            if method in ALGORITHMS:
                key, value = override(rest)
                own.setdefault(method, {})[key] = value
            else:
                common.append(text)
        base = session.settled(read(config, common))
        configs = comparison.configurations(base, [a.strip() for a in algorithms.split(",") if a.strip()], own)
        name = config.stem if config is not None else base.data.source.partition(":")[0]
        path = out or Path("runs") / f"compare-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        _compare(comparison.create(path, configs, seeds, tune=tune), debug)


@app.command()
def resume(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run or a comparison.")],
    debug: Debug = False,
) -> None:
    """Continue a stopped run or comparison; the results are bitwise those of an uninterrupted one."""
    with told(debug):
        from floco.analysis import comparison

        if comparison.is_comparison(path):
            _compare(comparison.reopen(path), debug)
        else:
            _continue(path, None, debug)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs or comparisons.")],
    out: Annotated[Path | None, _PAGE] = None,
    debug: Debug = False,
) -> None:
    """Write a self-contained HTML page: comparison, curves, clients, the simplex and the loss over it."""
    with told(debug):
        from floco.analysis.report import sections as report

        folder = runs[0] if len(runs) == 1 and runs[0].is_dir() else Path()
        say(f"the report is {report.write(runs, out or folder / 'report.html')}")


@app.command()
def data(
    config: ConfigFile = None,
    s: Overrides = None,
    picture: Annotated[Path | None, typer.Option(help="Write the picture to this file (.png, .svg, .pdf).")] = None,
    debug: Debug = False,
) -> None:
    """Show the federation's data: samples by client and label, and the heterogeneity."""
    with told(debug):
        from floco.cli import views
        from floco.runs import session
        from floco.runs.config import read

        federation = session.federation(read(config, s or []))
        out_console.print(views.label_table(federation))
        say(views.summary(federation))
        if picture is not None:
            views.label_picture(federation, picture)
            say(f"picture: {picture}")


def _describe(setup: Setup) -> str:
    federation, training, layout = setup.federation, setup.training, setup.network.layout
    n, clients = sum(t.numel() for t in setup.network.parameters.values()), len(federation.clients)
    kept = f", {len(federation.held_out)} held out" if federation.held_out else ""
    data = f"{clients} clients{kept}, {federation.classes} classes, inputs {federation.shape}"
    budget = f"{training.rounds} rounds of {max(1, round(training.fraction * clients))} clients"
    network = f"model of {n:,} parameters in {len(layout.parameters)} tensors"
    return f"{data}; {network}\n{setup.algorithm}, {budget}"


def _continue(path: Path, setup: Setup | None, debug: bool) -> None:
    """Train a run up to its last round, showing the progress, and print the closing table."""
    from floco.cli import views
    from floco.runs import session

    with _stoppable(path), ExitStack() as stack:
        session.carry(path, setup, lambda setup, start: _begun(stack, path, setup, start, debug))
    out_console.print(views.closing_table(path))
    if (path / "newcomers.csv").exists():
        out_console.print(views.newcomer_table(path))
    say(f"the run lies in {path}")


def _compare(made: Comparison, debug: bool) -> None:
    """Train the unfinished runs of a comparison, and print its table."""
    from floco.analysis import comparison, tables
    from floco.cli import views
    from floco.storage.tables import read_table

    with _stoppable(made.path), ExitStack() as stack:

        def start(title: str, path: Path, setup: Setup, progress: Progress) -> Callable[[Progress], None]:
            stack.close()  # closes the previous run's bar
            say(title)
            return _begun(stack, path, setup, progress, debug)

        failures = comparison.carry(made, start, say)
    out_console.print(views.comparison_table(made.path))
    if note := tables.left_out(read_table(made.path / "methods.csv")):
        say(note)
    say(f"the comparison lies in {made.path}")
    if failures:
        shown = "\n".join(f"{f['method']}, seed {f['seed']}: {f['reason']}" for f in failures)
        failed = f"{len(failures)} of {len(made.runs)} runs failed"
        raise RunFailed(f"{failed}:\n{shown}\ntry them again with: floco resume {made.path}")


@contextmanager
def _stoppable(path: Path) -> Iterator[None]:
    """When the user interrupts or a run fails, print how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        err_console.print(f"\nstopped; continue with: floco resume {path}", markup=False, highlight=False)
        raise typer.Exit(130) from None
    except RunFailed as error:
        raise RunFailed(f"{error}\ncontinue, once the cause is gone, with: floco resume {path}") from error


def _begun(stack: ExitStack, path: Path, setup: Setup, start: Progress, debug: bool) -> Callable[[Progress], None]:
    """Show a run's rounds until the stack is closed; say so if it is finished already."""
    if start.round == setup.training.rounds:
        say(f"{path} is finished: all {start.round} rounds are done")
    return stack.enter_context(_shown(start.round, setup.training.rounds, debug))


@contextmanager
def _shown(done: int, total: int, debug: bool) -> Iterator[Callable[[Progress], None]]:
    """Show the progress: a bar on a terminal, otherwise one line per evaluation."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    accuracies = TextColumn("{task.description}")
    columns = TextColumn("round"), MofNCompleteColumn(), BarColumn(), accuracies, TimeRemainingColumn()
    with Bar(*columns, console=out_console, auto_refresh=False, disable=not out_console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)
        text = ""

        def watch(progress: Progress) -> None:
            nonlocal text
            for failure in progress.failures:
                line = f"left out: {failure}" + (f"\n{failure.trace}" if debug else "")
                err_console.print(line, style="yellow", markup=False, highlight=False)
            if progress.evaluation is not None:
                row = progress.evaluation.history
                text = f"global {_percent(row['accuracy_global'])} personal {_percent(row['accuracy_personal'])}"
                if not out_console.is_terminal:
                    say(f"round {progress.round}/{total}: {text}")
            bar.update(task, completed=progress.round, description=text, refresh=True)

        yield watch


def _percent(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
