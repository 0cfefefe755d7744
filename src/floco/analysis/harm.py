"""Harm: whose personal model is worse than a model the client could have had instead, and by how much."""

from __future__ import annotations

import pandas as pd

from floco.core.metrics import Metrics

SIZES = ("harm_global_size", "harm_local_size")
"""Columns that are empty where nobody is harmed; means over seeds are those of the other seeds."""


def values(table: pd.DataFrame, by: list[str], model: tuple[str, str], metrics: Metrics) -> pd.Series:
    """Return the primary metric of a method's "personal" or "global_local" models; more is better.

    Args:
        table: rows of several methods, each of one client or one evaluation.
        by: columns of the index.
        model: (method, kind of model).
        metrics: what is measured; an error is negated.
    """
    method, kind = model
    rows = table[table["method"] == method].set_index(by)
    return (1 if metrics.higher else -1) * rows[f"{metrics.primary}_{kind}"].astype(float)


def add(runs: pd.DataFrame, clients: pd.DataFrame, metrics: Metrics) -> pd.DataFrame:
    """Return the rows of `runs` with four columns of harm, each in [0, inf) or missing.

    `harm_global` is the share of clients whose personal model is strictly worse by the primary metric, on their own
    test part, than the method's global model; if it has none, than FedAvg's under the same seed. `harm_local` is the
    share of those who are worse off than with Local's models under the same seed. `..._size` is the mean difference
    over these clients, in units of the metric. Clients without both values do not count; without any, all is missing.

    Args:
        runs: one row per run, with `method` and `seed`.
        clients: one row per run and client, with the primary metric of the `personal` and the `global_local` model.
        metrics: their names; the direction of the primary one says what is worse.
    """
    rows = [_measure(clients[clients["seed"] == s], m, metrics) for m, s in runs[["method", "seed"]].values]
    made = pd.DataFrame(rows, index=runs.index, dtype=float)
    return runs.assign(**{str(name): made[name] for name in made})


def _measure(clients: pd.DataFrame, method: str, metrics: Metrics) -> dict[str, float]:
    """Return the columns of one run, from the clients of all runs of its seed."""
    models = ((method, "personal"), (method, "global_local"), ("fedavg", "global_local"), ("local", "personal"))
    personal, shared, plain, local = (values(clients, ["client"], model, metrics).dropna() for model in models)
    others = {"global": shared if len(shared) else plain, "local": local}
    row: dict[str, float] = {}
    for which, other in others.items():
        lost = (other - personal).dropna().round(9)  # equal values, equal numbers
        row |= {f"harm_{which}": (lost > 0).mean(), f"harm_{which}_size": lost[lost > 0].mean()}
    return row
