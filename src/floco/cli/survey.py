"""What `floco data` shows: who has what, the schema, the findings; as tables, plain values and a picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from floco.core.errors import FlocoError
from floco.data.audit import Finding
from floco.data.describe import describe_schema, describe_targets
from floco.data.federation import Federation
from floco.data.samples import Samples
from floco.data.split import heterogeneity

_ROWS = 40  # clients shown in a terminal
_LABELS = 20  # labels shown in a terminal
_FEATURES = 20  # features of a table, and targets, shown in a terminal
_TARGETS = 4  # targets whose means are shown in a terminal
_WIDEST = 24  # characters of a client's id that are shown
_BETWEEN = 3  # characters between two columns of a table


def _counts(federation: Federation) -> list[tuple[int, ...]]:
    """Return how often each client has each label; () where targets are numbers."""
    task, labels = federation.task, len(federation.names)
    return [task.frequencies(federation.y[torch.cat([c.train, c.test])], labels) for c in federation.clients]


def client_table(federation: Federation, width: int, none: str = "\u00b7") -> Table:
    """Return the sizes of the clients' parts, and their samples by label or the mean and spread of their targets.

    Args:
        federation: the data.
        width: of the terminal, in characters; labels that do not fit are summed up.
        none: stands for no samples.
    """
    counts, clients = _counts(federation)[:_ROWS], federation.clients[:_ROWS]
    what = f"{federation.task.counted} by client and label" if counts[0] else "samples and targets by client"
    table = Table(title=f"who has what: {what}")
    table.add_column("client", no_wrap=True, overflow="ellipsis", max_width=_WIDEST)
    ids = max(len("client"), *(min(_WIDEST, len(c.id)) for c in clients))
    cells = _label_cells(federation, counts, width - ids, none) if counts[0] else _target_cells(federation)
    for name in ("train", "test", *cells[0]):
        table.add_column(escape(name), justify="right", no_wrap=True)
    for client, own in zip(clients, cells[1:], strict=True):
        table.add_row(escape(client.id), str(len(client.train)), str(len(client.test)), *own)
    if len(federation.clients) > _ROWS:
        table.add_row(f"and {len(federation.clients) - _ROWS} more")
    return table


def _label_cells(federation: Federation, counts: list[tuple[int, ...]], width: int, none: str) -> list[list[str]]:
    """Return the names of the labels that fit, and for each client shown its counts of them and of the others."""
    shown = [[str(n) if n else none for n in own] for own in counts]
    widths = [
        max(len(name), *map(len, own)) + _BETWEEN
        for name, own in zip(federation.names, zip(*shown, strict=True), strict=True)
    ]
    left = width - 1 - 3 * _BETWEEN - 2 * max(len("train"), len(str(max(map(sum, counts)))))
    fit = len(widths)
    if fit > _LABELS or sum(widths) > left:
        fit = int((np.cumsum(widths[:_LABELS]) <= left - len("others") - _BETWEEN).sum())
    others = fit < len(widths)
    head = [*federation.names[:fit], *(["others"] * others)]
    return [head, *([*own[:fit], *([str(sum(n[fit:]))] * others)] for own, n in zip(shown, counts, strict=True))]


def _target_cells(federation: Federation) -> list[list[str]]:
    """Return headings, and for each client shown mean, deviation and range of its one target, or means of several."""
    found = [describe_targets(federation, torch.cat([c.train, c.test])) for c in federation.clients[:_ROWS]]
    if len(found[0]) == 1:
        cells = [[_number(v) for v in spread.values()] for own in found for spread in own.values()]
        return [["mean", "deviation", "lowest", "highest"], *cells]
    some = list(found[0])[:_TARGETS]
    means = [[f"{_number(own[n]['mean'])} \u00b1 {_number(own[n]['std'])}" for n in some] for own in found]
    return [some, *means]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def schema_table(federation: Federation, samples: Samples) -> Table:
    """Return what each column of the data is."""
    rows = describe_schema(federation, samples)
    hidden = [r for role in ("feature", "target") for r in [r for r in rows if r["role"] == role][_FEATURES:]]
    table = Table(title="schema: what each column is", padding=(0, 0, 0, 1), pad_edge=False)
    for name in ("column", "role", "type", "scaling", "from", "to"):
        table.add_column(name, justify="right" if name in ("from", "to") else "left", overflow="fold")
    for row in (r for r in rows if r not in hidden):
        kind = f"{row['dtype']} ({', '.join(map(str, row['shape']))})" if row["shape"] else row["dtype"]
        kind += f", {row['layout']}" if row["layout"] else ""
        scaling = f"{len(row['classes'])} classes" if "classes" in row else row["scaling"]
        table.add_row(escape(row["name"]), row["role"], kind, scaling, _number(row["low"]), _number(row["high"]))
    if hidden:
        table.add_row(f"and {len(hidden)} more")
    return table


def summary(federation: Federation) -> str:
    """Return the sizes and the heterogeneity of a federation as text."""
    sizes = [len(c.train) + len(c.test) for c in federation.clients]
    test = "no global test part: the union of the clients' test parts is used instead"
    if federation.y_test is not None:
        test = f"global test part of {len(federation.y_test)} samples"
    measure = "mean total variation distance between a client's labels and all labels; 0: equal, towards 1: disjoint"
    known = f"{federation.classes} classes" if federation.task.labelled else f"task {federation.task.name}"
    words = f"{len(sizes)} clients of {min(sizes)} to {max(sizes)} samples, {known}; {test}"
    if not federation.task.labelled:
        return words
    return f"{words}\nheterogeneity of label shares {heterogeneity(_counts(federation)):.2f} ({measure})"


def summarize(federation: Federation, samples: Samples, findings: list[Finding]) -> dict[str, Any]:
    """Return clients with their sizes and labels or targets, heterogeneity, schema and warnings as plain values.

    `targets` are mean, deviation and range; of several targets, these by name.
    """
    names, labelled = federation.names, federation.task.labelled
    clients: list[dict[str, Any]] = [
        {"id": c.id, "n_train": len(c.train), "n_test": len(c.test)} for c in federation.clients
    ]
    counts = _counts(federation)
    for row, client, n in zip(clients, federation.clients, counts, strict=True):
        row["labels"] = dict(zip(names, n, strict=False))
        if not n:
            own = describe_targets(federation, torch.cat([client.train, client.test]))
            row["targets"] = own if len(own) > 1 else own["y"]
    made = {"clients": clients, "heterogeneity": heterogeneity(counts) if labelled else None}
    return {**made, "schema": describe_schema(federation, samples), "warnings": list(map(asdict, findings))}


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
