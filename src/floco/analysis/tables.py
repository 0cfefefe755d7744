"""Tables of finished runs: one row per run, per method and per pair of methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from floco.analysis import harm
from floco.core.errors import FlocoError
from floco.core.metrics import Metrics
from floco.core.settings import flatten
from floco.runs.changes import describe
from floco.storage.files import read_json
from floco.storage.tables import read_table
from floco.tasks import Classification

_NAN = float("nan")
_KINDS = ("history", "clients", "runs")
_OVERHEAD = ("seconds", "steps_per_client", "bytes_down", "bytes_up")
_SPREAD = ("weighted", "std", "worst5", "worst10")
_RIVALS = {"better_than_local": "local", "better_than_fedavg_ft": "fedavg+ft"}


@dataclass(frozen=True)
class Results:
    """Finished runs. The first columns of all tables are `method` and `seed`."""

    history: pd.DataFrame
    """All evaluations."""
    clients: pd.DataFrame
    """All clients in the last evaluation of each run."""
    runs: pd.DataFrame
    """One row per run."""
    paths: Mapping[tuple[str, int], Path] = field(default_factory=dict)
    """(method, seed) -> run directory."""
    metrics: Metrics = field(default_factory=lambda: Classification.metrics)
    """What the runs were judged by."""

    @property
    def names(self) -> list[str]:
        """The methods, in order."""
        return list(dict.fromkeys(self.runs["method"]))


@dataclass(frozen=True)
class _Finished:
    """A finished run and its name in the tables."""

    path: Path
    name: str
    seed: int
    history: pd.DataFrame
    metrics: Metrics

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The run's part of each table."""
        clients = read_table(self.path / "clients.csv")
        if "round" not in clients:
            raise FlocoError(f"{self.path} has no valid clients.csv: the run was changed")
        everybody = _number_of_clients(self.path, clients)
        clients = clients[clients["round"] == clients["round"].max()]
        parts = {
            "history": self.history,
            "clients": clients,
            "runs": _run_row(self.path, self.history, everybody, self.metrics),
        }
        own = {"method": self.name, "seed": self.seed}
        return {kind: pd.concat([pd.DataFrame(own, index=t.index), t], axis=1) for kind, t in parts.items()}


def _number_of_clients(path: Path, clients: pd.DataFrame) -> int:
    """Return how many clients a run has; clients.csv lacks those without a test part."""
    if (known := read_json(path / "run.json").get("clients")) is not None:
        return int(known)
    evaluated: int = clients["client"].nunique()  # on Flower, sites may join and leave
    sites: dict[str, Any] = read_json(path / "sites.json")["sites"] if (path / "sites.json").is_file() else {}
    return evaluated + sum(1 for site in sites.values() if site["n_test"] == 0)


def load(paths: Iterable[Path], order: Sequence[str] = ()) -> Results:
    """Return the results of the finished runs among `paths`.

    Runs of a method are seeds of one another if they belong to one comparison, or if all other settings are equal. Any
    other run, or a second one of the same seed, gets the name of its folder or its comparison's folder appended.

    Args:
        paths: run directories; unfinished runs, other folders and repetitions are skipped.
        order: methods that come first; the others follow in the order of `paths`.

    Raises:
        FlocoError: two runs of a seed differ in data, splits or number of rounds, or a file is missing.
    """
    found = _finished(paths)
    found.sort(key=lambda f: order.index(f.name) if f.name in order else len(order))
    parts = [f.tables for f in found] or [dict.fromkeys(_KINDS, pd.DataFrame({"method": [], "seed": []}))]
    history, clients, runs = (pd.concat([p[kind] for p in parts], ignore_index=True) for kind in _KINDS)
    metrics = found[0].metrics if found else Classification.metrics
    if other := next((f for f in found if f.metrics != metrics), None):
        names = f"{', '.join(metrics)} and {', '.join(other.metrics)}"
        raise FlocoError(f"{found[0].path} and {other.path} are about different tasks, with the metrics {names}")
    compared = compare_runs(runs, history, clients, metrics)
    return Results(history, clients, compared, {(f.name, f.seed): f.path for f in found}, metrics)


def _finished(paths: Iterable[Path]) -> list[_Finished]:
    """Return the finished runs with distinct pairs of name and seed."""
    found: list[_Finished] = []
    first: dict[int, tuple[Path, Any]] = {}
    settings: dict[str, Any] = {}
    for path in dict.fromkeys(p.resolve() for p in paths):
        if not (path / "run.json").is_file():
            continue
        facts, history = read_json(path / "run.json"), read_table(path / "history.csv")
        seed, rounds = facts["config"]["seed"], facts["config"]["training"]["rounds"]
        if not len(history) or history["round"].iloc[-1] != rounds:
            continue
        before, same = first.setdefault(seed, (path, (facts["data"], rounds)))
        if same != (facts["data"], rounds):
            problem = f"have seed {seed}, and other data, splits or numbers of rounds: they cannot be compared"
            raise FlocoError(f"{before} and {path} {problem}")
        together = path.parents[1] if (path.parents[1] / "comparison.json").is_file() else None
        own = _settings(facts) if together is None else together  # a comparison may tune every seed separately
        method = facts["method"] if together is None else path.name.removesuffix(f"-seed{seed}")  # or a variant's name
        folder, name, number = (together or path).name, method, 1
        while (name, seed) in {(f.name, f.seed) for f in found} or settings.get(name, own) != own:
            name = f"{method} ({folder}{f' {number}' if number > 1 else ''})"
            number += 1
        settings[name] = own
        found.append(_Finished(path, name, seed, history, Metrics.of(facts["metrics"])))
    return found


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what affects a run's results, without the seed; a configuration made in Python does not say all of it."""
    seen = {name: facts.get(name) for name in ("network", "clients")}
    made = [c for c in facts.get("changes", []) if not c["key"].startswith("run.")]
    seen["changes"] = "; ".join(describe(made)) or "none"
    return seen | flatten({n: t for n, t in facts["config"].items() if n not in ("seed", "run", "flower")})


def name_differences(paths: Iterable[Path]) -> str:
    """Return a sentence naming the settings in which runs differ, "" if none; methods and learning rates may differ."""
    seen: dict[str, list[Any]] = {}
    for path in paths:
        for key, value in _settings(read_json(path / "run.json")).items():
            if not key.startswith(("algorithm.", "deliver.", "training.lr")) and value not in seen.setdefault(key, []):
                seen[key].append(value)
    shown = [f"{key} ({', '.join(map(str, values))})" for key, values in seen.items() if len(values) > 1]
    return f"Not under equal conditions: these runs differ in {', '.join(shown)}." if shown else ""


def _run_row(path: Path, history: pd.DataFrame, clients: int, metrics: Metrics) -> pd.DataFrame:
    """Return the columns of a run that depend on no other run, as one row."""
    last, rounds = history.iloc[-1], float(history["round"].iloc[-1])
    kept = [f"{m}_{which}" for which in ("global", "personal") for m in metrics]
    kept += [*(f"{metrics.primary}_personal_{s}" for s in _SPREAD), f"{metrics.primary}_global_local"]
    row = {"rounds": rounds, **{k: last[k] for k in kept}}
    row |= {"steps_per_client": (history["steps"].sum() + last["steps_adapt"]) / clients}
    ways = [f"{what}_{way}" for what in ("parameters", "bytes") for way in ("down", "up")]
    row |= {way: history[way].sum() / rounds for way in ways}
    since = history["round"].diff().fillna(history["round"].iloc[0])
    variances = [k for k in map(str, history) if k.startswith("update_variance")]
    row |= {k: float(np.average(history[k].astype(float), weights=since)) for k in variances}
    return pd.DataFrame([row | {"seconds": read_table(path / "timings.csv")["seconds"].sum()}])


def fedavg_level(history: pd.DataFrame, column: str) -> float:
    """Return FedAvg's mean over the last tenth of its rounds (at least its last evaluation), NaN without FedAvg."""
    rows = history[history["method"] == "fedavg"]
    late = rows[rows["round"] > 0.9 * rows["round"].max()]
    return float(late[column].mean()) if len(late) else _NAN


def compare_runs(
    runs: pd.DataFrame, history: pd.DataFrame, clients: pd.DataFrame, metrics: Metrics = Classification.metrics
) -> pd.DataFrame:
    """Return the rows of `runs` with columns that compare each run with others of the same seed."""
    runs, primary, sign = runs.copy(), metrics.primary, 1 if metrics.higher else -1
    i: Any  # a row label, whose type pandas leaves open
    for i, run in runs.iterrows():
        mine, rest = (t[t["seed"] == run["seed"]] for t in (history, clients))
        for column in (f"{primary}_global", f"{primary}_personal"):
            wanted = fedavg_level(mine, column)
            there = mine[column] >= wanted if metrics.higher else mine[column] <= wanted
            reached = mine[(mine["method"] == run["method"]) & there]["round"]
            runs.loc[i, f"target_{column}"] = wanted
            runs.loc[i, f"first_round_{column}"] = reached.min() if len(reached) else _NAN
        values = rest.pivot(index="client", columns="method", values=f"{primary}_personal")
        for column, rival in _RIVALS.items():
            known = rival in values and rival != run["method"]
            both = values[[run["method"], rival]].dropna() if known else values.iloc[:0]
            won = sign * both[run["method"]] > sign * both[rival] if len(both) else both
            runs.loc[i, column] = won.mean() if len(both) else _NAN
            runs.loc[i, f"{column}_left_out"] = len(values) - len(both) if len(both) else _NAN
        base = runs[(runs["method"] == "fedavg") & (runs["seed"] == run["seed"])]
        for column in _OVERHEAD:
            one = float(base[column].iloc[0]) if len(base) else _NAN
            runs.loc[i, f"{column}_ratio"] = run[column] / one if one else _NAN
    return harm.add(runs, clients, metrics)


def methods(results: Results) -> pd.DataFrame:
    """Return one row per method: number of seeds, mean and standard deviation (`_seed_std`) over seeds of all columns.

    A mean is empty if any of its values is: a first round that one seed never reached has no mean. Sizes of harm are
    means over the seeds in which somebody is harmed.
    """
    rows = []
    for name in results.names:
        mine = results.runs[results.runs["method"] == name].drop(columns=["method", "seed"])
        spread = mine.std(ddof=1) if len(mine) > 1 else pd.Series(np.nan, index=mine.columns)
        row: dict[str, Any] = {"method": name, "seeds": len(mine)}
        for column in map(str, mine):
            row |= {column: mine[column].mean(skipna=column in harm.SIZES), f"{column}_seed_std": spread[column]}
        rows.append(row)
    return pd.DataFrame(rows)


def name_left_out(made: pd.DataFrame) -> str:
    """Return a sentence about clients missing in the "better than" columns of the table of methods, "" if none."""
    shown = [
        f"{row['method']} against {rival} {row[f'{column}_left_out']:g}"
        for _, row in made.iterrows()
        for column, rival in _RIVALS.items()
        if row.get(f"{column}_left_out", 0) > 0
    ]
    why = "because they were not evaluated under both methods (clients, mean over seeds)"
    return f"Left out of 'better than', {why}: {', '.join(shown)}." if shown else ""


def describe_groups(path: Path, metrics: Metrics) -> list[str]:
    """Return what each kind of model of a run is worth for each group of `data.group`, in words; [] without groups."""
    made, name = read_table(path / "groups.csv"), metrics.primary
    pooled = made if made.empty else made[made["client"] == ""]
    kinds = {"personal": "personal models", "global_local": "global model"}
    said = []
    for which in (k for k in kinds if len(pooled)):
        rows = pooled[pooled["model"] == which]
        numbers = zip(rows["group"], rows[name], rows["n"], strict=True)
        shown = ", ".join(f"{group} {metrics.text(name, value)} of {n}" for group, value, n in numbers)
        column = read_json(path / "run.json")["config"]["data"]["group"]
        what = f"{name.replace('_', ' ')} by {column}: {shown}"
        said += [f"{what} ({kinds[which]}, all clients' test parts together)"] if shown else []
    return said
