"""`floco report`: one self-contained HTML page about one or several runs. It needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from html import escape
from pathlib import Path

import pandas as pd

from floco import __version__, comparison, figures, tables
from floco.algorithms import FedAvg
from floco.algorithms.floco import OnSimplex
from floco.columns import ACCURACY, CALIBRATION, COST, methods_table
from floco.errors import FlocoError
from floco.files import csv_text, read_json, write_file
from floco.landscape import Landscape, barrier, between, common_sample, landscape, network_of
from floco.metrics import score
from floco.page import Section, html_table, plots, render, text
from floco.run import Run, open_run
from floco.store import Store
from floco.tables import Results
from floco.training import logits
from floco.values import Tensors


def expand(paths: Sequence[Path]) -> list[Path]:
    """Return the run directories among `paths`, those of comparisons included."""
    found: list[Path] = []
    for path in paths:
        if comparison.is_comparison(path):
            found += comparison.reopen(path).runs.values()
        elif (path / "run.json").is_file():
            found.append(path)
        else:
            raise FlocoError(f"{path} is neither a run directory nor that of a comparison: it has no run.json and no comparison.json")
    return found


def write(paths: Sequence[Path], out: Path) -> Path:
    """Write the report on runs and comparisons to the file `out`, and beside it what was measured over the simplex; return `out`."""
    runs = [p for p in expand(paths) if (p / "run.json").is_file()]
    results = tables.only(tables.load(runs), ", ".join(map(str, paths)))
    done = [p for p in runs if len(tables.load([p]).names)]
    simplex = next((p for p in done if _algorithm(p).startswith("floco")), None)
    opened, problem = _opened(simplex or done[0])
    sections = [*_comparison(results), *_clients(results, opened, problem)]
    if simplex is not None and opened is not None:
        sections += list(_simplex(opened, results, done, out))
    sections.append(_settings(done))
    names = ", ".join(results.names)
    about = f"{len(done)} finished runs of {names}; {environment_text(done[0])}; page written by floco {__version__}"
    title = f"Federated learning: {names}" if len(names) < 60 else f"Federated learning: {len(results.names)} methods"
    try:
        write_file(out, render(title, about, sections).encode())
    except OSError as error:
        raise FlocoError(f"cannot write the report {out}: {error.strerror or error}") from error
    return out


def environment_text(path: Path) -> str:
    """Return in a few words where a run was made."""
    known = read_json(path / "environment.json")
    return f"floco {known['floco']}, torch {known['torch']}, {known['machine']} ({known['cpu']})"


def _algorithm(path: Path) -> str:
    return str(read_json(path / "run.json")["config"]["algorithm"]["name"])


def _opened(path: Path) -> tuple[Run | None, str]:
    """Return a run with its data and models, or why it cannot be opened."""
    try:
        return open_run(path), ""
    except FlocoError as error:
        return None, str(error)


def _comparison(results: Results) -> Iterator[Section]:
    made = tables.methods(results)
    note = (
        "Means over seeds, ± their standard deviation. Global: one model on the global test part. Personal: each client's own model on its own test part, "
        "unweighted mean over all clients, trained or not. Target: FedAvg's mean over its last tenth of the rounds. A dash: no such model, or never reached."
    )
    yield Section("Comparison", text(note) + "".join(html_table(methods_table(made, c)) for c in (ACCURACY, CALIBRATION, COST)))
    variance = "The update variance is that of the clients' updates of the global model (for a simplex: the model at 1/M), mean of the rounds between evaluations."
    curves = [
        figures.curve(results, "accuracy_global", "Global model", "accuracy, %", percent=True),
        figures.curve(results, "accuracy_personal", "Personal models, mean over clients", "accuracy, %", percent=True),
        figures.curve(results, "update_variance_relative", "Update variance, relative", "variance / |mean update|²", log=True),
        figures.curve(results, "update_variance", "Update variance, absolute", "variance", log=True),
    ]
    yield Section("Curves", text(variance) + plots(*(c for c in curves if c.data)))
    if len(results.names) > 1:
        table = tables.pairs(results, results.names[0]).round({"mean_difference": 4})
        for column in ("p", "p_holm"):
            table[column] = [f"{p:.2g}" for p in table[column]]
        note = (
            f"Personal accuracy of the same client under {results.names[0]} and under another method, over all clients of all seeds. p: Wilcoxon's signed-rank test, two-sided; "
            "p_holm: corrected for the number of methods. Clients of one run share a model, so they are not independent, and p is too small rather than too large."
        )
        yield Section("Paired tests", text(note) + html_table(table))


def _clients(results: Results, opened: Run | None, problem: str) -> Iterator[Section]:
    seed = int(results.runs["seed"].iloc[0])
    federation = opened.setup.federation if opened is not None else None
    worst = figures.worst_clients(results, federation, seed)
    note = f"The clients that {results.names[0]} serves worst under seed {seed}, with the personal accuracy in per cent under every method."
    yield Section("Clients", plots(figures.distributions(results)) + text(note) + html_table(worst, ["labels"]))
    if federation is None:
        yield Section("Data and simplex", text(f"Not shown: {problem}"))
    else:
        yield Section("Who has what", text(f"The federation of seed {seed}.") + plots(figures.labels(federation)))


def _simplex(run: Run, results: Results, done: Sequence[Path], out: Path) -> Iterator[Section]:
    """Yield the clients' places on the simplex, and what the loss is over it."""
    algorithm, table = run.setup.algorithm, run.clients
    assert isinstance(algorithm, OnSimplex)
    which = f"{algorithm.name}, seed {run.setup.seed}, after round {run.progress.round}"
    placed = table[table["center"].notna()]
    if len(placed):
        centers, accuracies = dict(zip(placed["client"], placed["center"], strict=True)), dict(zip(placed["client"], placed["accuracy_personal"], strict=True))
        figure = figures.simplex(centers, run.setup.federation, accuracies, f"{len(placed)} clients on the simplex")
        note = (
            f"{which}. A client stands at the mean of the endpoints, weighted by its center; its colour is its most frequent label. "
            "With more than three endpoints this is a shadow: neighbours may be apart."
        )
        yield Section("Clients on the simplex", text(note) + plots(figure))
    if run.setup.local_buffers:
        yield Section("Loss over the simplex", text('Not shown: with training.buffers = "local" the shared simplex has no statistics of its own.'))
        return
    found = landscape(run.setup, algorithm, run.progress.state)
    write_file(out.with_name(f"{out.stem}-landscape.csv"), csv_text(found.rows, header=True).encode())
    network = _fedavg(run, done)
    reference = None if network is None else _global_loss(run, network)
    spread = [p.loss for points in found.planes.values() for p in points] or [found.middle.loss]
    planes = [figures.plane(corners, points, (min(spread), max(spread))) for corners, points in found.planes.items()]
    accuracies_ = [100 * p.accuracy for points in found.planes.values() for p in points]
    planes += [figures.plane(corners, points, (min(accuracies_), max(accuracies_)), "accuracy") for corners, points in found.planes.items()]
    shown = [
        figures.edges(found, reference and reference[0]),
        figures.edges(found, reference and 100 * reference[1], accuracy=True),
        *([figures.subregions(found)] if found.subregions else []),
        *planes,
    ]
    body = text(f"{which}, on {found.samples} test samples. {_in_words(found, reference)}")
    yield Section("Loss over the simplex", body + text(*_barriers(run, algorithm, found)) + plots(*shown) + _whole(run, algorithm, done))


def _in_words(found: Landscape, reference: tuple[float, float] | None) -> str:
    ends, edges = [p.loss for p in found.endpoints], [p.loss for points in found.edges.values() for p in points]
    words = f"Loss in the middle: {found.middle.loss:.3f}; at endpoints: {min(ends):.3f} to {max(ends):.3f}"
    words += f"; on edges at most {max(edges):.3f}" if edges else ""
    words += f"; FedAvg's global model: {reference[0]:.3f}" if reference else "; no FedAvg run with the same data and initial weights to compare with"
    if found.subregions:
        groups = list(found.subregions.values())
        center, middle = (sum(points[k].loss for points in groups) / len(groups) for k in (0, 1))
        inside = sum(sum(p.loss for p in points[2:]) / len(points[2:]) for points in groups) / len(groups)
        words += f". On the clients' own test parts, mean over clients: {center:.3f} at their centers, {inside:.3f} inside their subregions, {middle:.3f} in the middle"
    return words + "."


def _barriers(run: Run, algorithm: OnSimplex, found: Landscape) -> Iterator[str]:
    if set(algorithm.mixing.names) == set(run.setup.network.layout.parameters):
        yield f"All parameters have endpoints. The highest rise of the loss on an edge above the line between its ends is {found.barrier:.3f}."
    elif len(algorithm.mixing.names) == 1:
        yield (
            "Only one layer is mixed. If it is the last one, the loss is convex in the mixture, so there can be no barrier between endpoints, whatever they are: "
            "the finding is how low the loss is, not that it is connected."
        )


def _whole(run: Run, algorithm: OnSimplex, done: Sequence[Path]) -> str:
    """Return the line between two FedAvg networks that were trained independently, where all parameters are mixed and two seeds are at hand."""
    if set(algorithm.mixing.names) != set(run.setup.network.layout.parameters):
        return ""
    networks = [n for p in done if _algorithm(p) == "fedavg" and (n := _network(run, p)) is not None]
    if len(networks) < 2:
        return text("For the barrier between independently trained networks, compare with fedavg under two seeds or more.")
    losses = {f"FedAvg under two seeds ({i + 2}. against the first)": [x for x, _ in between(run.setup, networks[0], other)] for i, other in enumerate(networks[1:])}
    heights = ", ".join(f"{barrier(values):.3f}" for values in losses.values())
    return text(f"Between whole networks trained from different initial weights (FedAvg under different seeds) the rise is {heights}.") + plots(figures.lines(losses))


def _network(run: Run, path: Path) -> Tensors | None:
    """Return the global model of another run with networks of the same shapes."""
    with closing(Store(path)) as store:
        state = store.load().state
    names = {n: t.shape for n, t in {**run.setup.network.parameters, **run.setup.network.buffers}.items()}
    if {n: t.shape for n, t in state.shared.items()} != names:
        return None
    return network_of(replace(run.setup, algorithm=FedAvg()), state)


def _fedavg(run: Run, done: Sequence[Path]) -> Tensors | None:
    """Return FedAvg's global model from the same data and initial weights."""
    wanted = {"data": run.setup.federation.fingerprint(), "model": run.setup.network.fingerprint()}
    for path in (p for p in done if _algorithm(p) == "fedavg"):
        facts = read_json(path / "run.json")
        if {k: facts[k] for k in wanted} == wanted:
            return _network(run, path)
    return None


def _global_loss(run: Run, network: Tensors) -> tuple[float, float]:
    x, y = common_sample(run.setup.federation)
    found = score(logits(run.setup, network, x), y)
    return found.loss, found.accuracy


def _settings(done: Sequence[Path]) -> Section:
    shown = []
    for path in done[:1]:
        shown.append(f"<pre>{escape((path / 'config.toml').read_text(encoding='utf-8'))}</pre>")
        shown.append(f"<pre>{escape((path / 'environment.json').read_text(encoding='utf-8'))}</pre>")
    algorithms = {(c := read_json(p / "run.json")["config"]["algorithm"])["name"]: c for p in done}
    rows = pd.DataFrame([{"method": name, "settings": ", ".join(f"{k} = {v}" for k, v in c.items() if k != "name") or "none"} for name, c in algorithms.items()])
    return Section("Settings and environment", html_table(rows, ["settings"]) + text(f"Configuration and environment of the first run, {done[0].name}:") + "".join(shown))
