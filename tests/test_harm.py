"""Harm: who is worse off with a personal model, by how much, and against which model."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from floco.analysis import harm, tables
from floco.analysis.columns import harm_columns, methods_table
from floco.analysis.tables import Results
from floco.core.metrics import Metric, Metrics
from floco.tasks import Classification

NAN = float("nan")
COLUMNS = ("harm_global", "harm_global_size", "harm_local", "harm_local_size")
METRICS = {"accuracy": Classification.metrics, "rmse": Metrics({"rmse": Metric(higher=False, share=False)})}


def clients(metric: str, models: dict[str, tuple[list[float], list[float]]], seed: int = 0) -> pd.DataFrame:
    """Each method's values for the clients a, b, c, ...: of the personal models, and of the global one."""
    rows: list[dict[str, Any]] = [
        {"method": m, "seed": seed, "client": client, f"{metric}_personal": p, f"{metric}_global_local": g}
        for m, values in models.items()
        for client, p, g in zip("abcd", *values, strict=False)
    ]
    return pd.DataFrame(rows)


def measure(metric: str, models: dict[str, tuple[list[float], list[float]]]) -> pd.DataFrame:
    runs = pd.DataFrame({"method": list(models), "seed": 0})
    return harm.add(runs, clients(metric, models), METRICS[metric]).set_index("method")


FT, FEDAVG, LOCAL = "fedavg+ft", "fedavg", "local"
NONE = [NAN] * 4
PLAIN = [0.5, 0.5, 0.5, 0.5]
CASES: dict[str, tuple[str, dict[str, tuple[list[float], list[float]]], tuple[float, ...]]] = {
    "higher is better": ("accuracy", {FT: ([0.7, 0.4, 0.2, 0.6], PLAIN)}, (0.5, 0.2, NAN, NAN)),
    "lower is better": ("rmse", {FT: ([7.0, 4.0, 2.0, 6.0], [5.0] * 4)}, (0.5, 1.5, NAN, NAN)),
    "ties are no harm": ("accuracy", {FT: ([0.5, 0.5, 0.4, 0.5], PLAIN)}, (0.25, 0.1, NAN, NAN)),
    "nor is rounding": ("accuracy", {FT: ([0.1 + 0.2], [0.3]), LOCAL: ([0.3 + 1e-12], [NAN])}, (0, NAN, 0, NAN)),
    "one model": ("accuracy", {FT: (PLAIN, PLAIN)}, (0, NAN, NAN, NAN)),
    "everybody": ("accuracy", {FT: ([0.25] * 4, PLAIN)}, (1, 0.25, NAN, NAN)),
    "values missing": ("accuracy", {FT: ([0.4, NAN, 0.7, 0.1], [0.5, 0.5, 0.5, NAN])}, (0.5, 0.1, NAN, NAN)),
    "no global model, no FedAvg": ("accuracy", {FT: (PLAIN, NONE)}, (NAN, NAN, NAN, NAN)),
    "no global model, FedAvg's": (
        "accuracy",
        {FT: (PLAIN, NONE), FEDAVG: ([0.9] * 4, [0.4, 0.7, 0.6, 0.5])},  # its personal models do not matter
        (0.5, 0.15, NAN, NAN),
    ),
    "an own global model, not FedAvg's": (
        "accuracy",
        {FT: (PLAIN, [0.4] * 4), FEDAVG: ([0.9] * 4, [0.9] * 4)},
        (0, NAN, NAN, NAN),
    ),
    "Local": ("accuracy", {FT: (PLAIN, [0.4] * 4), LOCAL: ([0.8, 0.6, 0.5, 0.1], NONE)}, (0, NAN, 0.5, 0.2)),
    "Local, lower": ("rmse", {FT: ([5.0] * 4, [5.0] * 4), LOCAL: ([8.0, 6.0, 5.0, 1.0], NONE)}, (0, NAN, 0.25, 4)),
    "a client missing under FedAvg": (
        "accuracy",
        {FT: (PLAIN, NONE), FEDAVG: ([0.6] * 3, [0.6, 0.4, 0.4])},
        (1 / 3, 0.1, NAN, NAN),
    ),
    "a client missing under Local": (
        "accuracy",
        {FT: (PLAIN, PLAIN), LOCAL: ([0.6, 0.4], [NAN, NAN])},
        (0, NAN, 0.5, 0.1),
    ),
    "no client in common": ("accuracy", {FT: ([0.5], [0.5]), LOCAL: ([NAN, 0.4], [NAN, NAN])}, (0, NAN, NAN, NAN)),
}


@pytest.mark.parametrize("case", CASES)
def test_harm_is_the_share_of_clients_worse_off_and_how_much_they_lose(case: str) -> None:
    metric, models, wanted = CASES[case]
    found = measure(metric, models).loc[FT, list(COLUMNS)].tolist()
    assert found == pytest.approx(wanted, nan_ok=True)


def test_clients_of_another_seed_do_not_count() -> None:
    one = clients("accuracy", {FT: (PLAIN, NONE)})
    other = clients("accuracy", {FEDAVG: ([0.9] * 4, [0.9] * 4), LOCAL: ([0.9] * 4, NONE)}, seed=1)
    found = harm.add(pd.DataFrame({"method": [FT], "seed": [0]}), pd.concat([one, other]), METRICS["accuracy"])
    assert found[list(COLUMNS)].isna().all(axis=None)


def test_nobody_loses_against_the_own_models_and_a_second_count_changes_nothing() -> None:
    models = {FEDAVG: (PLAIN, PLAIN), LOCAL: ([0.6, 0.4, 0.5, 0.5], NONE)}
    found = measure("accuracy", models)
    assert found["harm_global"].tolist() == [0, 0.25]
    assert found["harm_local"].tolist() == [0.25, 0]
    again = harm.add(found.reset_index(), clients("accuracy", models), METRICS["accuracy"])
    pd.testing.assert_frame_equal(again.set_index("method"), found)


def test_the_size_of_harm_is_a_mean_over_the_seeds_that_have_some() -> None:
    sizes = [0.04, NAN, 0.02]
    runs = pd.DataFrame({"method": FT, "seed": range(3), "harm_global": [0.1, 0.0, 0.2], "harm_global_size": sizes})
    runs = runs.assign(harm_local=NAN, harm_local_size=NAN, other=[1.0, NAN, 1.0])
    made = tables.methods(Results(pd.DataFrame(), pd.DataFrame(), runs))
    shown = made.loc[0, ["harm_global", "harm_global_size", "harm_local_size", "other"]].tolist()
    assert shown == pytest.approx([0.1, 0.03, NAN, NAN], nan_ok=True)
    assert made.loc[0, "harm_global_size_seed_std"] == pytest.approx(np.std([0.04, 0.02], ddof=1))


def test_shares_of_clients_are_in_per_cent_and_sizes_in_the_units_of_the_metric() -> None:
    row = {"method": [FT], "harm_global": [0.25], "harm_global_size": [0.5], "harm_local": [NAN]}
    made = pd.DataFrame({**row, "harm_local_size": [NAN]})
    shown = {name: methods_table(made, harm_columns(m)).iloc[0].tolist() for name, m in METRICS.items()}
    assert shown == {"accuracy": [FT, "25.0", "50.0", "-", "-"], "rmse": [FT, "25.0", "0.5", "-", "-"]}
