"""`floco report`: one self-contained HTML page about one or more runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from floco import __version__
from floco.analysis import choices, comparison, tables
from floco.analysis.columns import cost_columns, harm_columns, main_columns, methods_table, other_columns
from floco.analysis.pairs import pairs
from floco.analysis.report import figures, surface
from floco.analysis.report.page import Section, html_table, plots, render, text
from floco.analysis.report.price import price
from floco.analysis.tables import Results
from floco.analysis.verdict import decide
from floco.api import open_run
from floco.core.errors import FlocoError
from floco.core.values import Row
from floco.runs.changes import describe
from floco.runs.evaluated import read_changes
from floco.runs.reading import find_run, read_settings
from floco.runs.results import Run
from floco.storage.files import csv_text, read_json, replace_file

_METRICS = (
    "Means over seeds, ± their standard deviation. Global: one model, on the global test part or, if there is none, "
    "on the union of the clients' test parts. Personal: each client's own model on its own test part, unweighted mean "
    "over all clients, whether they trained or not. Target: FedAvg's mean over the last tenth of its rounds. A dash "
    "means that there is no such model, or that the target was never reached."
)
_HARM = (
    "Harm: the share of clients whose personal model is worse, on their own test part, than the method's global model "
    "(of a method without one: than FedAvg's), and than the client's model under Local, with the mean difference over "
    "these clients."
)
_ECE = (
    "ECE comes out too high on few samples, so of equally calibrated models the mean over clients (personal) looks "
    "worse than that of all test samples together (global). Brier scores are sums over the classes, from 0 to 2."
)
_VARIANCE = (
    "Update variance: variance over clients of the updates of the parameters they send (on a simplex: of the model at "
    "1/M), mean over the rounds between evaluations. FedPer and FedRep send the body only; history.csv has separate "
    "variances for body and head."
)
_PRICE = (
    "Up and left is better. Blue: hardly any client is worse off with its own model than with the global one "
    "(FedAvg's, if the method has none); red: most are. Steps are no time: one of FedEM is a pass for each learner."
)
_TESTS = (
    "p: Wilcoxon's signed-rank test, two-sided; p holm: corrected for the number of methods. Clients of one run share "
    "a model, so they are not independent, and p is too small rather than too large."
)


def write(paths: Sequence[Path], out: Path) -> Path:
    """Write the report on runs and comparisons to the file `out`, and return `out`.

    What was measured over the simplex goes to `<out stem>-landscape.csv` in the same folder.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise FlocoError(f"the report must be a file in an existing folder, got {out}")
    runs, order = _expand(paths)
    results = tables.load(runs, order)
    if not results.names:
        raise FlocoError(f"{', '.join(map(str, paths))} holds no finished run; finish one first: floco resume RUN")
    first, count = next(iter(results.paths.values())), len(results.paths)
    opened, problem = _opened(next(filter(_on_simplex, results.paths.values()), first))
    absent = [name for name in dict.fromkeys(order) if name not in results.names]
    verdict, *why = decide(results, absent)
    sections = [
        Section("Which model to deploy", f'<p class="verdict">{escape(verdict)}</p>\n{text(*why)}'),
        *_methods(results, _missing(runs, results)),
        *_clients(results, opened, problem),
    ]
    if count == 1 and (groups := tables.describe_groups(first, results.metrics)):
        sections.append(Section("Groups", text(*groups, "groups.csv has each client's, and intervals.")))
    measured: list[Row] = []
    if opened is not None and (mixing := opened.setup.algorithm.mixing) is not None:
        section, measured = surface.loss(opened, mixing, results)
        sections += [*surface.clients(opened, results), section]
    sections.append(_settings(results))
    names = ", ".join(results.names)
    title = f"Federated learning: {names}" if len(names) < 60 else f"Federated learning: {len(results.names)} methods"
    finished = f"{count} finished run{'s' * (count > 1)}"
    about = f"{finished} of {names}; {_environment(first)}; page written by floco {__version__}"
    try:
        replace_file(out, render(title, about, sections).encode())
        if measured:
            replace_file(out.with_name(f"{out.stem}-landscape.csv"), csv_text(measured, header=True).encode())
    except OSError as error:
        raise FlocoError(
            f"cannot write the report {out}: {error.strerror or error}; choose another place with -o"
        ) from error
    return out


def _expand(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the run directories in `paths`, including those of comparisons, and the comparisons' methods in order."""
    found: list[Path] = []
    order: list[str] = []
    for path in map(find_run, paths):
        if comparison.is_comparison(path):
            made = comparison.reopen(path)
            found += made.runs.values()
            order += made.configs
        elif os.path.isfile(path / "run.json"):
            found.append(path)
        else:
            missing = "it has no run.json and no comparison.json that can be read"
            raise FlocoError(f"{path} is neither a run directory nor that of a comparison: {missing}")
    return found, order


def _missing(runs: Sequence[Path], results: Results) -> str:
    """Return a sentence about the runs that are not in the tables, "" if there are none."""
    missing = [p.name for p in runs if p.resolve() not in results.paths.values()]
    return f"Not finished, and not in any table: {', '.join(missing)}." if missing else ""


def _on_simplex(path: Path) -> bool:
    try:
        return read_settings(path, read_json(path / "run.json")).algorithm.mixing is not None
    except FlocoError:  # a class that is not importable here; `_opened` says so
        return False


def _environment(path: Path) -> str:
    known = read_json(path / "environment.json")
    return f"floco {known.get('floco')}, torch {known.get('torch')}, {known.get('machine')} ({known.get('cpu')})"


def _opened(path: Path) -> tuple[Run | None, str]:
    """Return a run with its models, or why it cannot be opened."""
    try:
        return open_run(path), ""
    except FlocoError as error:
        return None, str(error)


def _methods(results: Results, missing: str) -> Iterator[Section]:
    """Yield the tables and curves of the methods, and of several methods the paired tests."""
    made = tables.methods(results)
    several = len(results.names) > 1
    about = [_METRICS, _HARM, *([_ECE] if "ece" in results.metrics else [])]
    notes = (*about, tables.name_differences(results.paths.values()), tables.name_left_out(made), missing)
    notes = (*notes, *choices.describe(results.clients))
    kinds = (main_columns, harm_columns, other_columns, cost_columns)
    shown = [html_table(methods_table(made, columns(results.metrics))) for columns in kinds]
    yield Section("Comparison" if several else "Results", text(*filter(None, notes)) + "".join(shown))
    if several and (figures_of := price(made, results.metrics)):
        yield Section("What accuracy costs", text(_PRICE) + plots(*figures_of))
    relative, name = "variance / |mean update|²", results.metrics.primary
    unit, scale = results.metrics.scaled(name)
    curves = [
        figures.curve(results, f"{name}_global", "Global model", unit, scale),
        figures.curve(results, f"{name}_personal", "Personal models, mean over clients", unit, scale),
        figures.curve(results, "update_variance_relative", "Update variance, relative", relative, log=True),
        figures.curve(results, "update_variance", "Update variance, absolute", "variance", log=True),
    ]
    yield Section("Curves", text(_VARIANCE) + plots(*(c for c in curves if c.data)))
    table = pairs(results, results.names[0])
    if len(table):
        p = {name: table[name].map("{:.2g}".format) for name in ("p", "p_holm")}
        unit_of = ", points" if scale == 100 else ""
        sizes = ("mean_difference", "lower", "upper")
        numbers = {n: ["-" if v != v else f"{scale * v:.3g}" for v in table[n].tolist()] for n in sizes}
        table = table.assign(**numbers, **p)
        table.columns = [f"{c}{unit_of}".replace("_", " ") if c in sizes else str(c).replace("_", " ") for c in table]
        what = (
            f"Personal {unit.removesuffix(', %')} of the same client under {results.names[0]} and under another method "
            f"({'higher' if results.metrics.higher else 'lower'} is better; the difference is the first less the other)"
        )
        note = f"{what}, mean over common seeds, one for each client. {_TESTS}"
        yield Section("Paired tests", text(note) + html_table(table))


def _clients(results: Results, opened: Run | None, problem: str) -> Iterator[Section]:
    seed = opened.setup.seed if opened is not None else int(results.runs["seed"].iloc[0])
    federation = opened.setup.federation if opened is not None else None
    worst = figures.worst_clients(results, federation, seed)
    unit = results.metrics.scaled(results.metrics.primary)[0].replace(", %", " in %")
    note = f"The clients that {worst.attrs['by']} serves worst under seed {seed}: personal {unit} by method."
    yield Section("Clients", plots(figures.distributions(results)) + text(note) + html_table(worst, ["labels"]))
    if federation is None:
        yield Section("Data and simplex", text(f"Not shown: {problem}"))
    elif federation.task.labelled:
        yield Section("Who has what", text(f"The federation of seed {seed}.") + plots(figures.labels(federation)))


def _settings(results: Results) -> Section:
    """Return the settings of every method, and configuration and environment of the first run."""
    rows = []
    for (name, seed), path in results.paths.items():
        config = read_json(path / "run.json")["config"]
        own = ", ".join(f"{k} = {v}" for k, v in config["algorithm"].items() if k != "name") or "none"
        rows.append({"method": name, "seed": seed, "training.lr": config["training"]["lr"], "settings": own})
    table = pd.DataFrame(rows)
    if table["seed"].nunique() > 1:  # one row for all seeds with the same settings
        groups = table.groupby(["method", "training.lr", "settings"], sort=False)["seed"]
        table = groups.agg(lambda s: ", ".join(map(str, s))).reset_index()
    changed = [(path.name, read_changes(path)) for path in results.paths.values()]
    said = [f"{name} was changed {line}." for name, made in changed for line in describe(made)]
    first = next(iter(results.paths.values()))
    texts = [(first / name).read_text(encoding="utf-8") for name in ("config.toml", "environment.json")]
    files = text(f"Configuration at the start and environment of {first.name}:") + "".join(
        f"<pre>{escape(t)}</pre>" for t in texts
    )
    return Section("Settings and environment", html_table(table, ["settings"]) + text(*said) + files)
