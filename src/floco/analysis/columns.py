"""Which columns of methods.csv are shown where, with headings and number formats."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from floco.core.metrics import Metrics


class Column(NamedTuple):
    """A heading, and the scale and format of its values."""

    heading: str
    scale: float
    form: str


def _share(heading: str) -> Column:
    return Column(heading, 100, ".1f")


def _plain(heading: str, form: str = ",.0f") -> Column:
    return Column(heading, 1, form)


def _kb(heading: str) -> Column:
    return Column(heading, 1e-3, ",.0f")


def _metric(metrics: Metrics, name: str, heading: str) -> Column:
    """Return the column of a metric: a share in per cent, which the heading then says."""
    return _share(f"{heading} %") if metrics[name].share else _plain(heading, ".4g")


def terminal_columns(metrics: Metrics) -> dict[str, Column]:
    """Return the columns of the terminal's table."""
    name = metrics.primary
    make = _share if metrics[name].share else lambda heading: _plain(heading, ".4g")  # the title has the unit
    shown = {
        f"{name}_global": make("global"),
        f"{name}_personal": make("personal"),
        f"{name}_personal_worst10": make("worst tenth"),
    }
    shown |= {f"{m}_personal": column for m, column in _named(metrics).items() if m in ("loss", "ece")}
    return shown | {
        "better_than_fedavg_ft": _share("beat FT %"),
        "steps_per_client": _plain("steps"),
        "bytes_up": _kb("kB up"),
        "seconds": _plain("s"),
    }


def main_columns(metrics: Metrics) -> dict[str, Column]:
    """Return the columns of the report's table of the primary metric."""
    name = metrics.primary
    return {
        "seeds": _plain("seeds"),
        f"{name}_global": _metric(metrics, name, "global"),
        f"{name}_personal": _metric(metrics, name, "personal"),
        f"{name}_personal_weighted": _metric(metrics, name, "weighted by samples"),
        f"{name}_personal_std": _metric(metrics, name, "spread over clients"),
        f"{name}_personal_worst5": _metric(metrics, name, "worst twentieth of clients"),
        f"{name}_personal_worst10": _metric(metrics, name, "worst tenth"),
        "better_than_local": _share("clients better than local %"),
        "better_than_fedavg_ft": _share("better than fedavg+ft %"),
    }


_SHOWN = {"loss": "NLL", "ece": "ECE %", "brier": "Brier"}
_LEFT_OUT = ("balanced_accuracy",)


def _named(metrics: Metrics) -> dict[str, Column]:
    """Return a column for each metric but the primary one."""
    columns = {}
    for name in metrics:
        if name != metrics.primary and name not in _LEFT_OUT:
            heading = _SHOWN.get(name, name) if "brier" in metrics else name
            columns[name] = _share(heading) if metrics[name].share else _plain(heading, ".3f")
    return columns


def other_columns(metrics: Metrics) -> dict[str, Column]:
    """Return the columns of the report's table of the other metrics."""
    return {
        f"{name}_{which}": column._replace(heading=f"{column.heading}, {which}")
        for which in ("personal", "global")
        for name, column in _named(metrics).items()
    }


def harm_columns(metrics: Metrics) -> dict[str, Column]:
    """Return the columns of the tables of clients that are worse off, in the terminal and in the report."""
    unit = "points" if metrics[metrics.primary].share else metrics.primary.replace("_", " ")
    size = _share if metrics[metrics.primary].share else lambda heading: _plain(heading, ".3g")
    return {
        "harm_global": _share("worse than global %"),
        "harm_global_size": size(f"by {unit} (global)"),
        "harm_local": _share("worse than local %"),
        "harm_local_size": size(f"by {unit} (local)"),
    }


def cost_columns(metrics: Metrics) -> dict[str, Column]:
    """Return the columns of the report's table of what methods cost."""
    return {
        f"first_round_{metrics.primary}_global": _plain("first round at the target, global"),
        f"first_round_{metrics.primary}_personal": _plain("first round at the target, personal"),
        "update_variance_relative": _plain("update variance / |mean update|²", ".3g"),
        "update_variance": _plain("update variance", ".3g"),
        "steps_per_client": _plain("optimiser steps a client"),
        "parameters_down": _plain("parameters down a round"),
        "parameters_up": _plain("parameters up a round"),
        "bytes_down": _kb("kB down a round"),
        "bytes_up": _kb("kB up a round"),
        "bytes_up_ratio": _plain("bytes up / FedAvg's", ".2f"),
        "seconds": _plain("seconds", ",.1f"),
        "seconds_ratio": _plain("time / FedAvg's", ".2f"),
    }


def cell(row: Any, key: str, column: Column, *, spread: bool = False) -> str:
    """Format one value of methods.csv, with ± its standard deviation over seeds; a missing value becomes a dash.

    >>> cell({"accuracy_global": 0.8712, "accuracy_global_seed_std": 0.004}, "accuracy_global", _share(""), spread=True)
    '87.1 ± 0.4'
    """
    value, other = row[key], row.get(f"{key}_seed_std", float("nan")) if spread else float("nan")
    if value != value:  # missing
        return "-"
    known = other == other and other > 0  # no spread for values that cannot differ between seeds
    return f"{column.scale * value:{column.form}}" + (f" ± {column.scale * other:{column.form}}" if known else "")


def methods_table(made: pd.DataFrame, columns: dict[str, Column], *, spread: bool = True) -> pd.DataFrame:
    """Return the table of methods with headings and formatted values."""
    rows = [
        {"method": row["method"], **{c.heading: cell(row, key, c, spread=spread) for key, c in columns.items()}}
        for _, row in made.iterrows()
    ]
    return pd.DataFrame(rows, columns=["method", *(c.heading for c in columns.values())])
