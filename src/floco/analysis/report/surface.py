"""Sections of the report about the simplex: where the clients are, and the loss over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from floco.algorithms import FedAvg
from floco.analysis.landscape import Landscape, barrier, between, common_sample, landscape, network_of
from floco.analysis.report.figures import lines
from floco.analysis.report.page import Section, plots, text
from floco.analysis.report.simplex import edges, plane, simplex, subregions
from floco.analysis.tables import Results
from floco.client.predict import judge
from floco.core.errors import FlocoError
from floco.core.mixing import Mixing
from floco.core.values import Row, Tensors
from floco.runs.checkpoint import Store
from floco.runs.results import Run
from floco.storage.files import read_json

_PLACES = (
    "Each client is drawn at the mean of the endpoints weighted by its center{colour}. With more than three endpoints "
    "this is a projection: clients that are drawn close may be far apart."
)
_CONVEX = (
    "The outputs are linear in the mixture, so the loss is convex in it and there can be no barrier between endpoints, "
    "whatever they are: the finding is how low the loss is, not that it is connected."
)


def clients(run: Run, results: Results) -> Iterator[Section]:
    """Yield the section on the clients' positions on the simplex, if they have been assigned."""
    table = run.clients
    placed = table[table["center"].notna()]
    if not len(placed):
        return
    metrics, name = run.setup.task.metrics, run.setup.task.primary
    centers, values = (dict(zip(placed["client"], placed[c], strict=True)) for c in ("center", f"{name}_personal"))
    reached = {c: f"{name.replace('_', ' ')} {metrics.text(name, value)}" for c, value in values.items()}
    figure = simplex(centers, run.setup.federation, reached, f"{len(placed)} clients on the simplex")
    colour = ", in the colour of its most frequent label" if run.setup.task.labelled else ""
    yield Section(
        "Clients on the simplex", text(f"{_which(run, results)}. {_PLACES.format(colour=colour)}") + plots(figure)
    )


def _which(run: Run, results: Results) -> str:
    """Return which run this is, with its name in the tables."""
    known = {path.resolve(): name for (name, _), path in results.paths.items()}
    name = run.setup.algorithm.name if run.path is None else known.get(run.path.resolve(), run.setup.algorithm.name)
    return f"{name}, seed {run.setup.seed}, after round {run.progress.round}"


def loss(run: Run, mixing: Mixing, results: Results) -> tuple[Section, list[Row]]:
    """Return the section on the loss over the shared simplex, and all measurements as rows."""
    title = "Loss over the simplex"
    if run.setup.local_buffers:
        why = 'with training.buffers = "local" the shared simplex has no statistics of its own'
        return Section(title, text(f"Not shown: {why}.")), []
    try:
        run = replace(run, setup=run.setup.with_samples("the loss over the simplex"))
    except FlocoError as error:
        return Section(title, text(f"Not shown: {error}.")), []
    found = landscape(run.setup, mixing, run.progress)
    network = _fedavg(run, results)
    score = None if network is None else judge(run.setup, [network], *common_sample(run.setup.federation))[0]
    reference = None if score is None else (score.loss, run.setup.task.value(score))
    unit, scale = run.setup.task.metrics.scaled(found.metric)
    shown = [edges(found, reference and reference[0])]
    shown += [edges(found, reference and scale * reference[1], unit, scale)]
    shown += [subregions(found)] if found.subregions else []
    planes = found.planes.items()
    heights = {c: [p.loss for p in points] for c, points in planes}
    reached = {c: [scale * p.value for p in points] for c, points in planes}
    for named, values in (("loss", heights), (unit.removesuffix(", %"), reached)):
        both = [v for part in values.values() for v in part]
        shown += [plane(c, points, values[c], (min(both), max(both)), named) for c, points in planes]
    whole = set(mixing.names) == set(run.setup.network.layout.parameters)
    words = [
        f"The shared simplex of {_which(run, results)}, on {found.samples} test samples. {_in_words(found, reference)}"
    ]
    if whole and found.edges:
        rise = f"The highest rise of the loss on an edge above the line between its ends is {found.barrier:.3f}."
        words.append(f"All parameters have endpoints. {rise}")
    elif found.convex and found.edges:
        words.append(_CONVEX)
    html, rows = _between(run, results) if whole else ("", [])
    return Section(title, text(*words) + plots(*shown) + html), found.rows + rows


def _in_words(found: Landscape, reference: tuple[float, float] | None) -> str:
    ends, on_edges = [p.loss for p in found.endpoints], [p.loss for points in found.edges.values() for p in points]
    words = f"Loss in the middle: {found.middle.loss:.3f}; at endpoints: {min(ends):.3f} to {max(ends):.3f}"
    words += f"; on edges at most {max(on_edges):.3f}" if on_edges else ""
    none = "; there is no FedAvg run with the same data and initial weights to compare with"
    words += f"; FedAvg's global model: {reference[0]:.3f}" if reference else none
    if found.subregions:
        groups = list(found.subregions.values())
        center, middle = (sum(points[k].loss for points in groups) / len(groups) for k in (0, 1))
        inside = sum(sum(p.loss for p in points[2:]) / len(points[2:]) for points in groups) / len(groups)
        means = f"{center:.3f} at their centers, {inside:.3f} inside their subregions, {middle:.3f} in the middle"
        words += f". On the clients' own test parts, mean over clients: {means}"
    return words + "."


def _between(run: Run, results: Results) -> tuple[str, list[Row]]:
    """Return the loss on lines between FedAvg networks with different initial weights, as HTML and as rows."""
    if run.setup.federation.tested is None:
        why = "there is no global test part, and the test samples of one seed are training samples of another"
        return text(f"The barrier between independently trained networks is not shown: {why}."), []
    chosen = {seed: path for (name, seed), path in results.paths.items() if name == "fedavg"}
    models = {seed: _model(path) for seed, path in chosen.items()}
    distinct = {model: seed for seed, model in reversed(models.items())}  # first seed of each initial network
    networks = {seed: n for seed in sorted(distinct.values()) if (n := _network(run, chosen[seed])) is not None}
    if len(networks) < 2:
        advice = "compare with fedavg under two seeds or more"
        return text(f"For the barrier between independently trained networks, {advice}."), []
    (first, start), *others = networks.items()
    found = {f"FedAvg, seed {seed} against seed {first}": between(run.setup, start, other) for seed, other in others}
    losses = {name: [x for x, _ in line] for name, line in found.items()}
    heights = ", ".join(f"{barrier(values):.3f}" for values in losses.values())
    which = "Between whole networks trained from different initial weights (FedAvg under different seeds)"
    rows: list[Row] = [
        {"kind": "networks", "where": name, "alpha": "", "loss": x, run.setup.task.primary: value}
        for name, line in found.items()
        for x, value in line
    ]
    return text(f"{which} the rise is {heights}.") + plots(lines(losses)), rows


def _model(path: Path) -> str:
    return str(read_json(path / "run.json")["model"])


def _network(run: Run, path: Path) -> Tensors | None:
    """Return the global model of a FedAvg run, None if its network has other shapes."""
    with closing(Store(path, read=True)) as store:
        state = store.load().state
    shapes = {n: t.shape for n, t in {**run.setup.network.parameters, **run.setup.network.buffers}.items()}
    if {n: t.shape for n, t in state.shared.items()} != shapes:
        return None
    return network_of(replace(run.setup, algorithm=FedAvg()), state)


def _fedavg(run: Run, results: Results) -> Tensors | None:
    """Return FedAvg's global model, trained from the same data and initial weights."""
    path = results.paths.get(("fedavg", run.setup.seed))
    return None if path is None or _model(path) != run.setup.network.fingerprint() else _network(run, path)
