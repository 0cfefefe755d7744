"""Tables for the terminal."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from floco.analysis import choices
from floco.analysis.columns import harm_columns, methods_table, terminal_columns
from floco.client.measure import all_metrics, describe_samples
from floco.core.metrics import Metrics
from floco.runs.evaluated import read_metrics
from floco.storage.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from floco.core.task import Task
    from floco.data.federation import Federation
    from floco.deliver.drift import Drift
    from floco.deliver.measures import Measured
    from floco.deliver.placement import Placement


def comparison_tables(path: Path, metrics: Metrics) -> list[Table]:
    """Return the methods of a comparison directory with means over seeds, and whom their personal models harm."""
    from floco.storage.tables import read_table

    made = read_table(path / "methods.csv")
    fewest, seeds = int(made["seeds"].min()), int(made["seeds"].max())  # they differ where runs have failed
    number = f"{seeds}" if fewest == seeds else f"{fewest} to {seeds}"
    title = f"{metrics.reading}: means over {number} seed{'s' * (seeds > 1)} (methods.csv has the rest)"
    kinds = {title: terminal_columns(metrics), "Share of clients whose personal model is worse": harm_columns(metrics)}
    return [_methods_table(title, methods_table(made, columns, spread=False)) for title, columns in kinds.items()]


def _methods_table(title: str, shown: pd.DataFrame) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
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
    if (clients := read_json(path / "run.json").get("clients")) and (missing := clients - last["clients_evaluated"]):
        table.add_row("clients without an evaluation", f"{missing:.0f} of {clients}")
    table.add_row("clients that took part", f"{last['clients_trained']:.0f} of {last['clients_evaluated']:.0f}")
    return table


def closing_lines(path: Path, task: Task) -> list[str]:
    """Return which models the clients of a run have chosen, if they had a choice, and how sure its metrics are."""
    from floco.storage.tables import read_table

    table = read_table(path / "clients.csv")
    last = table[table["round"] == table["round"].max()] if len(table) else table
    return [*choices.describe(last), uncertainty_line(path, task)]


def uncertainty_line(path: Path, task: Task) -> str:
    """Return how sure the personal models' primary metric is for single clients, in words; "" if that is unknown."""
    from floco.storage.tables import read_table

    made, name = read_table(path / "metrics.csv"), task.primary
    if made.empty or not len(own := made[made["model"] == "personal"].dropna(subset=[f"{name}_lower"])):
        return ""
    wide = float((own[f"{name}_upper"] - own[f"{name}_lower"]).median())
    width = f"{100 * wide:.1f} points" if task.metrics[name].share else f"{wide:.3g}"
    few = f"the smallest test part is {describe_samples(task, int(own['n'].min()))}"
    what = f"for one client, the 95 % interval of the personal {name.replace('_', ' ')} is {width} wide"
    return f"{what} (median of {len(own)}, metrics.csv); {few}"


def measure_lines(judged: Measured | None, federation: Federation, n: int) -> list[str]:
    """Return what a model is worth on n samples, in words; None: it was not measured, as predictions are means."""
    task, names, target = federation.task, federation.names, "y"
    if federation.table is not None and federation.table.roles.target:
        target = ", ".join(federation.table.roles.target)
    if judged is None:
        return [f"not compared with {target}: --mixtures averages predictions, and metrics are those of one model"]
    metrics, values = all_metrics(task), judged.metrics
    known = [name for name in metrics if name in task.metrics or values[name] is not None]
    shown = (f"{name.replace('_', ' ')} {metrics.text(name, values[name])}" for name in known)
    lines = [f"compared with {target}: {', '.join(shown)}"]
    if (threshold := values.get("threshold")) is not None:
        where = f"from a probability of {threshold:.3g} on, chosen on training samples"
        label = "labels are those of the largest probability, whatever the threshold"
        lines.append(f"sensitivity and specificity are of {names[1]!r}, {where}; {label}")
    lines.append(f"95 % interval: {_with_interval(metrics, task.primary, values)}, {describe_samples(task, n)}")
    return lines + [f"{r['group']}: {_with_interval(metrics, task.primary, r)}, of {r['n']}" for r in judged.groups]


def _with_interval(metrics: Metrics, name: str, values: Mapping[str, Any]) -> str:
    """Return e.g. `accuracy 94.4 % [74.2 %, 99.0 %]`; the interval may be unknown."""
    ends = [values[f"{name}_{end}"] for end in ("lower", "upper")]
    shown = "unknown" if None in ends else f"[{', '.join(metrics.text(name, end) for end in ends)}]"
    return f"{name.replace('_', ' ')} {metrics.text(name, values[name])} {shown}"


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
        known = "" if row["loss_known"] is None else f"{row['loss_known']:.3f}"
        table.add_row(escape(str(row["point"])), known, f"{row['loss_new']:.3f}")
    return table


def drift_classes(found: Drift) -> Table:
    """Return what the model at a client's center makes of the samples of each label, known and new."""
    table = Table(title=f"labels that the model of client {escape(found.client)} recognises")
    table.add_column("label")
    for name in ("own test part", "new data"):
        table.add_column(name, justify="right")
    table.add_column("new data mostly taken for")
    for row in found.classes:
        shares = (row[f"recognised_{part}"] for part in ("known", "new"))
        counts = (row[f"samples_{part}"] for part in ("known", "new"))
        cells = (f"{100 * s:.0f} % of {n}" if s is not None else "none" for s, n in zip(shares, counts, strict=True))
        table.add_row(escape(str(row["label"])), *cells, escape(str(row["mostly_taken_for"])))
    return table
