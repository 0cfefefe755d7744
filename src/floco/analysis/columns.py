"""Which columns of methods.csv are shown where, with headings and number formats."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd


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


COLUMNS = {
    "seeds": _plain("seeds"),
    "accuracy_global": _share("global %"),
    "accuracy_personal": _share("personal %"),
    "accuracy_personal_worst10": _share("worst 10 %"),
    "loss_personal": _plain("NLL", ".3f"),
    "ece_personal": _share("ECE %"),
    "better_than_fedavg_ft": _share("beat FT %"),
    "steps_per_client": _plain("steps"),
    "bytes_up": _kb("kB up"),
    "seconds": _plain("s"),
}
"""The columns of the terminal's table."""
ACCURACY = {
    "seeds": _plain("seeds"),
    "accuracy_global": _share("global %"),
    "accuracy_personal": _share("personal %"),
    "accuracy_personal_weighted": _share("weighted by samples %"),
    "accuracy_personal_std": _share("spread over clients"),
    "accuracy_personal_worst5": _share("worst 5 % of clients"),
    "accuracy_personal_worst10": _share("worst 10 %"),
    "better_than_local": _share("clients better than local %"),
    "better_than_fedavg_ft": _share("better than fedavg+ft %"),
}
CALIBRATION = {
    f"{metric}_{which}": make(f"{text}, {which}")
    for which in ("personal", "global")
    for metric, text, make in (
        ("loss", "NLL", lambda t: _plain(t, ".3f")),
        ("ece", "ECE %", _share),
        ("brier", "Brier", lambda t: _plain(t, ".3f")),
    )
}
COST = {
    "first_round_accuracy_global": _plain("first round at the target, global"),
    "first_round_accuracy_personal": _plain("first round at the target, personal"),
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
"""The columns of the report's three tables."""


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
