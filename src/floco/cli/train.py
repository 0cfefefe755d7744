"""Training and inspection: `floco run`, `compare`, `resume`, `report`, `data`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from floco.cli.console import ConfigFile, Debug, Json, Overrides, app, emit, note, out_console, report_errors, say
from floco.cli.progress import begin_bar, stoppable
from floco.core.errors import FlocoError, RunFailed

if TYPE_CHECKING:
    from floco.analysis.comparison import Comparison
    from floco.client.setup import Setup
    from floco.server.progress import Progress

_OUT = typer.Option(help="Run directory; must be empty or absent. Default: runs/<name>-<method>-<time>.")
_COMPARISON = typer.Option(help="Directory; must be empty or absent. Default: runs/compare-<name>-<time>.")
_METHODS = typer.Option("-a", metavar="A,B,...", help="Methods; the first is tested against the others.")
_TUNE = typer.Option("--tune", help="First try six settings per method, validated on a part of the training data.")
_PAGE = typer.Option("-o", metavar="FILE.html", help="Default: report.html in the directory, or here for several.")
_CHANGE = typer.Option("-s", metavar="KEY=VALUE", help="Change a setting from the next round on.")
Changes = Annotated[list[str] | None, _CHANGE]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and exit.")]


@app.command()
def run(
    config: ConfigFile = None,
    s: Overrides = None,
    out: Annotated[Path | None, _OUT] = None,
    print_config: PrintConfig = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a federation: one global model, and one model per client."""
    with report_errors(debug, as_json):
        from floco.data.audit import audit_gravely
        from floco.runs import session, source
        from floco.runs.toml import as_dict, read, to_toml

        settings = source.resolve_paths(read(config, s or []))
        if print_config:
            out_console.out(to_toml(settings), end="", highlight=False)
            emit(as_json, **as_dict(settings))
            return
        name = config.stem if config is not None else settings.data.source.partition(":")[0]
        path = out or Path("runs") / f"{name}-{settings.algorithm.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        setup = session.prepare(settings)
        for finding in audit_gravely(setup.federation):
            note(f"{finding.text} (see floco data)")
        session.create(session.resolve_engine(settings, setup), setup, path)
        say(_describe(setup))
        emit(as_json, **_continue(path, setup, debug))


@app.command()
def compare(
    config: ConfigFile = None,
    algorithms: Annotated[str, _METHODS] = "floco,floco+,fedavg,fedavg+ft,ditto,local",
    seeds: Annotated[int, typer.Option(help="Number of seeds, starting with the configuration's.")] = 3,
    s: Overrides = None,
    out: Annotated[Path | None, _COMPARISON] = None,
    tune: Annotated[bool, _TUNE] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare several methods on the same data, splits, client samples and budget.

    -s KEY=VALUE applies to all methods, -s METHOD.KEY=VALUE (e.g. ditto.pull=0.5) to one. -a NAME=METHOD compares a
    method under another name, with settings of its own: -a floco,own=floco -s own.centers=own.
    """
    with report_errors(debug, as_json):
        from floco.algorithms import ALGORITHMS
        from floco.analysis import comparison
        from floco.runs import source
        from floco.runs.toml import override, read

        methods = [a.strip() for a in algorithms.split(",") if a.strip()]
        words = {*comparison.split_variants(methods)[0], *ALGORITHMS}
        own: dict[str, dict[str, Any]] = {}
        common: list[str] = []
        for text in s or []:
            method, _, rest = text.partition(".")
            if method in words:
                key, value = override(rest)
                own.setdefault(method, {})[key] = value
            else:
                common.append(text)
        base = source.resolve_paths(read(config, common, resolve=False))
        configs = comparison.configure(base, methods, own)
        name = config.stem if config is not None else base.data.source.partition(":")[0]
        path = out or Path("runs") / f"compare-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        emit(as_json, **_compare(comparison.create(path, configs, seeds, tune=tune), debug))


@app.command()
def resume(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run or a comparison.")],
    s: Changes = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue a stopped run or comparison; the results are bitwise those of an uninterrupted one.

    A run, also a finished one, can go on with other settings of training and run, e.g. -s training.rounds=200. They
    hold from the next round on, and are noted in the run.
    """
    with report_errors(debug, as_json):
        from floco.analysis import comparison

        if s and (made := comparison.find(path)) is not None:
            raise FlocoError(
                f"{made} is a comparison: its methods have the same settings from the first round to the last. Start "
                "another one with floco compare, e.g. floco compare -s training.rounds=200"
            )
        if comparison.is_comparison(path):
            emit(as_json, **_compare(comparison.reopen(path), debug))
        else:
            emit(as_json, **_continue(path, None, debug, s or []))


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of runs or comparisons, or bundles.")
    ],
    out: Annotated[Path | None, _PAGE] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a self-contained HTML page: comparison, curves, clients, the simplex and the loss over it."""
    with report_errors(debug, as_json):
        from floco.analysis.report import sections as report

        folder = runs[0] if len(runs) == 1 and runs[0].is_dir() else Path()
        page = report.write(runs, out or folder / "report.html")
        say(f"the report is {page}")
        emit(as_json, report=page)


@app.command()
def data(
    config: ConfigFile = None,
    s: Overrides = None,
    picture: Annotated[Path | None, typer.Option(help="Write the picture to this file (.png, .svg, .pdf).")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the federation's data: samples by client and label, the schema, and what to look at before training."""
    with report_errors(debug, as_json):
        from floco.cli import survey
        from floco.data.audit import audit
        from floco.runs import source
        from floco.runs.toml import read

        settings = read(config, s or [])
        samples = source.samples(settings)
        federation = source.divide(settings, samples)
        raw = settings
        if settings.data.normalize == "client":  # equal samples and other units are seen before the normalisation
            raw = replace(settings, data=replace(settings.data, normalize="train"))
        findings = audit(federation if raw is settings else source.divide(raw, samples), samples.columns)
        none = "\u00b7" if out_console.encoding.startswith("utf") else "."
        out_console.print(survey.client_table(federation, out_console.width, none))
        say(survey.summary(federation))
        out_console.print(survey.schema_table(federation, samples))
        for finding in findings:
            note(finding.text)
        if picture is not None:
            survey.label_picture(federation, picture)
            say(f"picture: {picture}")
        emit(as_json, **survey.summarize(federation, samples, findings), picture=picture)


def _describe(setup: Setup) -> str:
    federation, training = setup.federation, setup.training
    clients = len(federation.clients)
    kept = f", {len(federation.held_out)} held out" if federation.held_out else ""
    known = f"{federation.classes} classes" if federation.task.labelled else f"task {federation.task.name}"
    data = f"{clients} clients{kept}, {known}, inputs {federation.shape}"
    budget = f"{training.rounds} rounds of {max(1, round(training.fraction * clients))} clients"
    return f"{data}\n{setup.network.describe()}\n{setup.algorithm}, {budget}"


def _continue(path: Path, setup: Setup | None, debug: bool, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train a run up to its last round; print the closing table, and return the last evaluation."""
    from floco.analysis.tables import describe_groups
    from floco.cli import views
    from floco.runs import session
    from floco.runs.changes import describe
    from floco.runs.evaluated import read_changes

    with stoppable(path), ExitStack() as stack:

        def start(setup: Setup, progress: Progress) -> Callable[[Progress], None]:
            for line in describe(read_changes(path)):
                say(line)
            return begin_bar(stack, path, setup, progress, debug)

        setup = session.continue_run(path, setup, start, overrides)
    out_console.print(views.closing_table(path))
    for line in filter(None, [*views.closing_lines(path, setup.task), *describe_groups(path, setup.task.metrics)]):
        say(line)
    if (path / "newcomers.csv").exists():
        out_console.print(views.newcomer_table(path))
    say(f"the run is in {path}")
    return {"run": path, "evaluation": views.last_row(path)}


def _compare(made: Comparison, debug: bool) -> dict[str, Any]:
    """Train the unfinished runs of a comparison; print its table, and return it."""
    from floco.analysis import choices, comparison, tables
    from floco.analysis.verdict import decide
    from floco.cli import views
    from floco.storage.tables import read_table

    with stoppable(made.path), ExitStack() as stack:

        def start(title: str, path: Path, setup: Setup, progress: Progress) -> Callable[[Progress], None]:
            stack.close()  # closes the previous run's bar
            say(title)
            return begin_bar(stack, path, setup, progress, debug)

        failures = comparison.run_all(made, start, say)
    found, said = comparison.results(made), list[str]()
    if found.names:
        out_console.print(*views.comparison_tables(made.path, found.metrics))
        said = decide(found, [name for name in made.configs if name not in found.names])
        left_out, chosen = tables.name_left_out(read_table(made.path / "methods.csv")), choices.describe(found.clients)
        say("\n".join(filter(None, [left_out, *chosen, *said])))
    say(f"the comparison is in {made.path}")
    if failures:
        shown = "\n".join(f"{f['method']}, seed {f['seed']}: {f['reason']}" for f in failures)
        failed = f"{len(failures)} of {len(made.runs)} runs failed"
        raise RunFailed(f"{failed}:\n{shown}\ntry them again with: floco resume {made.path}")
    return {
        "comparison": made.path,
        "methods": read_table(made.path / "methods.csv").to_dict("records"),
        "verdict": said,
    }
