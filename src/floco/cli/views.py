"""Tables for the terminal, and the picture of `floco data`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from floco.analysis.columns import methods_table, terminal_columns
from floco.core.errors import FlocoError
from floco.core.metrics import Metrics
from floco.data.federation import Federation
from floco.data.split import heterogeneity
from floco.runs.results import read_metrics

if TYPE_CHECKING:
    from floco.deliver.drift import Drift
    from floco.deliver.placement import Placement

_ROWS = 40  # clients shown in a terminal


def _counts(federation: Federation) -> list[tuple[int, ...]]:
    """Return the samples of each client by label."""
    parts = [(federation.label_counts(c.train), federation.label_counts(c.test)) for c in federation.clients]
    return [tuple(a + b for a, b in zip(train, test, strict=True)) for train, test in parts]


def label_table(federation: Federation) -> Table:
    """Return the samples by client and label, and the sizes of the training and test parts."""
    by = "client and label" if federation.task.labelled else "client"
    table = Table(title=f"who has what: samples by {by}")
    table.add_column("client")
    for name in ("train", "test", *federation.names[:20]):
        table.add_column(escape(name), justify="right")
    for client, counts in list(zip(federation.clients, _counts(federation), strict=True))[:_ROWS]:
        sizes = str(len(client.train)), str(len(client.test))
        table.add_row(escape(client.id), *sizes, *(str(n) if n else "·" for n in counts[:20]))
    if len(federation.clients) > _ROWS:
        table.add_row(f"and {len(federation.clients) - _ROWS} more")
    return table


def summary(federation: Federation) -> str:
    """Return the sizes and the heterogeneity of a federation as text."""
    counts = _counts(federation)
    sizes = [len(c.train) + len(c.test) for c in federation.clients]
    test = "no global test part: the union of the clients' test parts is used instead"
    if federation.y_test is not None:
        test = f"global test part of {len(federation.y_test)} samples"
    measure = "mean total variation distance between a client's labels and all labels; 0: equal, towards 1: disjoint"
    known = f"{federation.classes} classes" if federation.task.labelled else f"task {federation.task.name}"
    words = f"{len(sizes)} clients of {min(sizes)} to {max(sizes)} samples, {known}; {test}"
    if not federation.task.labelled:
        return words
    return f"{words}\nheterogeneity {heterogeneity(counts):.2f} ({measure})"


def summarize(federation: Federation) -> dict[str, Any]:
    """Return the clients with their sizes and labels, and the heterogeneity, as plain values."""
    counts = _counts(federation)
    names, labelled = federation.names, federation.task.labelled
    clients = [
        {"id": c.id, "n_train": len(c.train), "n_test": len(c.test), "labels": dict(zip(names, n, strict=False))}
        for c, n in zip(federation.clients, counts, strict=True)
    ]
    return {"clients": clients, "heterogeneity": heterogeneity(counts) if labelled else None}


def label_picture(federation: Federation, path: Path) -> None:
    """Write a stacked bar chart of samples by client and label."""
    if not federation.task.labelled:
        raise FlocoError(f"the picture shows labels, and task {federation.task.name} has none")
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    counts = _counts(federation)
    figure = Figure(figsize=(min(16, 3 + 0.22 * len(counts)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["tab10" if federation.classes <= 10 else "viridis"].resampled(federation.classes)
    base = [0] * len(counts)
    for label, name in enumerate(federation.names):
        column = [c[label] for c in counts]
        axes.bar(range(len(counts)), column, bottom=base, width=0.85, color=colours(label), label=name)
        base = [a + b for a, b in zip(base, column, strict=True)]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="client", ylabel="samples", title="Who has what", xlim=(-0.7, len(counts) - 0.3))
    if federation.classes <= 20:
        axes.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=130, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise FlocoError(f"cannot write the picture {path}: {error}") from error


def comparison_table(path: Path, metrics: Metrics) -> Table:
    """Return the methods of a comparison directory with means over seeds."""
    from floco.storage.tables import read_table

    made = read_table(path / "methods.csv")
    table = Table(title="methods: means over seeds (methods.csv has the rest)", padding=(0, 0, 0, 1), pad_edge=False)
    shown = methods_table(made, terminal_columns(metrics), spread=False)
    for name in shown:
        table.add_column(str(name), justify="left" if name == "method" else "right", no_wrap=name == "method")
    for row in shown.itertuples(index=False):
        table.add_row(*map(str, row))
    return table


def last_row(path: Path) -> dict[str, float | None]:
    """Return the last evaluation of a run directory; None for empty cells."""
    with (path / "history.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {name: float(text) if text else None for name, text in last.items()}


def closing_table(path: Path) -> Table:
    """Return the last evaluation of a run directory as a table."""
    metrics, last = read_metrics(path), last_row(path)

    def value(which: str) -> str:
        number = last[f"{metrics.primary}_{which}"]
        return "none (no such model)" if number is None else metrics.text(metrics.primary, number)

    title = f"{metrics.primary.replace('_', ' ')} after round {last['round']:.0f}"
    table = Table(title=title, show_header=False)
    rows = [
        ("global model, all test data", "global"),
        ("global model, mean over clients", "global_local"),
        ("personal models, mean over clients", "personal"),
        ("personal models, worst 5 % of clients", "personal_worst5"),
    ]
    for text, which in rows:
        table.add_row(text, value(which))
    table.add_row("clients that took part", f"{last['clients_trained']:.0f} of {last['clients_evaluated']:.0f}")
    return table


def newcomer_table(path: Path) -> Table:
    """Return the mean primary metric of the held-out clients, by model and number of labelled samples."""
    metrics = read_metrics(path)
    primary = metrics.primary
    from floco.storage.tables import read_table

    made = read_table(path / "newcomers.csv")
    means = made.pivot_table(index="model", columns="size", values=primary, aggfunc="mean")
    means = means[[str(size) for size in made["size"].unique() if size in means]]
    counts = made.groupby("size")["client"].nunique()
    rated = made.dropna(subset=primary)  # a model that could not be made has none
    judged: dict[Any, int] = rated.groupby(["model", "size"])["client"].nunique().to_dict()
    what = f"mean {primary.replace('_', ' ')} by number of labelled samples"
    table = Table("model", title=f"newcomers: {made['client'].nunique()} held-out clients, {what}")
    for n in means.columns:
        table.add_column(f"{n}" + ("" if counts[n] == counts.max() else f" ({counts[n]} clients)"), justify="right")
    for name in (m for m in ("placed", "global", "global+ft", "local") if m in means.index):
        row: dict[Any, float] = means.loc[name].to_dict()
        cells = []
        for size, mean in row.items():
            number = judged.get((name, size), 0)
            few = f" (of {number})" if number < counts[size] else ""
            cells.append(f"{metrics.text(primary, mean)}{few}" if mean == mean else "")
        table.add_row(name, *cells)
    return table


def placement_table(placement: Placement, metrics: Metrics) -> Table:
    """Return the candidate points for a newcomer."""
    primary = metrics.primary.replace("_", " ")
    table = Table(title=f"where the newcomer could be (loss and {primary} on samples left out in turn)")
    for name in ("place", "loss", primary, "", "mixture"):
        table.add_column(name, justify="right" if name in ("loss", primary) else "left")
    meaning = {"global": "middle of the simplex", "signal": "by its signal", "data": "best for its data"}
    for rule, problem in placement.problems.items():
        table.add_row(meaning[rule], "", "", "", escape(problem))
    for c in placement.candidates:
        chosen = "chosen" if c is placement.chosen else ""
        mixture = " ".join(f"{a:.2f}" for a in c.alpha.tolist())
        table.add_row(meaning[c.rule], f"{c.loss:.3f}", metrics.text(metrics.primary, c.value), chosen, mixture)
    return table


def drift_table(found: Drift) -> Table:
    """Return the losses on which a drift check is based."""
    table = Table(title=f"loss of client {escape(found.client)} at points of the simplex")
    for name in ("point", "own test part", "new data"):
        table.add_column(name, justify="left" if name == "point" else "right")
    for row in found.evidence:
        table.add_row(escape(str(row["point"])), f"{row['loss_known']:.3f}", f"{row['loss_new']:.3f}")
    return table
