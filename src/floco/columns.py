"""Which columns of methods.csv are shown where, how they are headed, and how their values are written."""

from __future__ import annotations

from typing import Any

import pandas as pd

COLUMNS = {
    "accuracy_global": "global %",
    "accuracy_personal": "personal %",
    "accuracy_personal_worst10": "worst 10 %",
    "loss_personal": "NLL",
    "ece_personal": "ECE %",
    "better_than_fedavg_ft": "beat FT %",
    "steps_per_client": "steps",
    "bytes_up": "kB up",
    "seconds": "s",
}
"""What a terminal shows."""
ACCURACY = {
    "accuracy_global": "global %",
    "accuracy_personal": "personal %",
    "accuracy_personal_weighted": "weighted by samples %",
    "accuracy_personal_std": "spread over clients",
    "accuracy_personal_worst5": "worst 5 % of clients %",
    "accuracy_personal_worst10": "worst 10 % %",
    "better_than_local": "clients better than local %",
    "better_than_fedavg_ft": "better than fedavg+ft %",
}
CALIBRATION = {f"{metric}_{which}": f"{text}, {which}" for which in ("personal", "global") for metric, text in (("loss", "NLL"), ("ece", "ECE %"), ("brier", "Brier"))}
COST = {
    "first_round_accuracy_global": "first round at the target, global",
    "first_round_accuracy_personal": "first round at the target, personal",
    "update_variance_relative": "update variance / |mean update|²",
    "update_variance": "update variance",
    "steps_per_client": "optimiser steps a client",
    "parameters_down": "parameters down a round",
    "parameters_up": "parameters up a round",
    "bytes_down": "kB down a round",
    "bytes_up": "kB up a round",
    "bytes_up_ratio": "bytes up / FedAvg's",
    "seconds": "seconds",
    "seconds_ratio": "time / FedAvg's",
}
"""What the report shows besides, in three tables."""


def cell(row: Any, key: str, *, spread: bool = False) -> str:
    """Return one value of methods.csv as users read it: shares in per cent, bytes in kB; a dash for a missing one.

    >>> cell({"accuracy_global": 0.8712, "accuracy_global_seed_std": 0.004}, "accuracy_global", spread=True)
    '87.1 ± 0.4'
    """
    value = row[key]
    if value != value:  # missing
        return "-"
    share = key.startswith(("accuracy", "balanced", "ece", "better"))
    scale, digits = (100, 1) if share else (1e-3, 0) if key.startswith("bytes") else (1, 3 if key.startswith(("loss", "brier", "update")) else 0)
    other = row.get(f"{key}_seed_std", float("nan")) if spread else float("nan")
    return f"{scale * value:.{digits}f}" + (f" ± {scale * other:.{digits}f}" if other == other else "")


def methods_table(made: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Return the table of methods as readers see it: means, and ± the standard deviation over seeds for shares."""
    several = len(made) > 0 and made["seeds"].max() > 1
    rows = [{"method": row["method"], **{text: cell(row, key, spread=several) for key, text in columns.items()}} for _, row in made.iterrows()]
    return pd.DataFrame(rows)
