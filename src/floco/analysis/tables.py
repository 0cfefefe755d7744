"""What several finished runs say together: one row a run, one a method, one a pair of methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from floco.core.errors import FlocoError
from floco.core.metrics import METRICS
from floco.storage.files import read_json, replace_file
from floco.storage.tables import read_table

_OVERHEAD = ("seconds", "steps_per_client", "bytes_down", "bytes_up")
_LAST = (
    *(f"{m}_global" for m in METRICS),
    *(f"{m}_personal" for m in METRICS),
    "accuracy_personal_weighted",
    "accuracy_personal_std",
    "accuracy_personal_worst5",
    "accuracy_personal_worst10",
    "accuracy_global_local",
)
_RIVALS = {"better_than_local": "local", "better_than_fedavg_ft": "fedavg+ft"}


@dataclass(frozen=True)
class Results:
    """Finished runs. All tables have the columns `method` and `seed` first."""

    history: pd.DataFrame
    """All evaluations."""
    clients: pd.DataFrame
    """All clients, from the last evaluation of each run."""
    runs: pd.DataFrame
    """One row a run."""
    paths: Mapping[tuple[str, int], Path] = field(default_factory=dict)
    """(method, seed) -> run directory."""

    @property
    def names(self) -> list[str]:
        """The methods, in order."""
        return list(dict.fromkeys(self.runs["method"]))


def load(paths: Iterable[Path], order: Sequence[str] = ()) -> Results:
    """Return the results of those run directories that are finished.

    Runs of a method are seeds of one another if they are of one comparison, or if all else is equal: others, and a second run of a
    seed, also go by their folder's name, or that of their comparison.

    Args:
        paths: run directories; others and repetitions are passed over.
        order: methods that come first; all others as they come.

    Raises:
        FlocoError: two runs of a seed have other data, splits or numbers of rounds, or a file is missing.
    """
    found: list[tuple[Path, str, int, Any]] = []
    first: dict[int, tuple[Path, Any]] = {}
    taken: set[tuple[str, int]] = set()
    settings: dict[str, Any] = {}
    for path in dict.fromkeys(p.resolve() for p in paths):
        if not (path / "run.json").is_file():
            continue
        facts, history = read_json(path / "run.json"), read_table(path / "history.csv")
        config = facts["config"]
        if not len(history) or history["round"].iloc[-1] != config["training"]["rounds"]:
            continue
        name, seed = config["algorithm"]["name"], config["seed"]
        together = path.parents[1] if (path.parents[1] / "comparison.json").is_file() else None
        before, same = first.setdefault(seed, (path, (facts["data"], config["training"]["rounds"])))
        if same != (facts["data"], config["training"]["rounds"]):
            raise FlocoError(f"{before} and {path} have seed {seed}, and other data, splits or numbers of rounds: they cannot be compared")
        own = _settings(config) if together is None else together  # a comparison may tune every seed by itself
        folder, number = path.name if together is None else together.name, 1
        while (name, seed) in taken or settings.get(name, own) != own:
            name = f"{config['algorithm']['name']} ({folder}{f' {number}' if number > 1 else ''})"
            number += 1
        settings[name] = own
        taken.add((name, seed))
        found.append((path, name, seed, history))
    found.sort(key=lambda f: order.index(f[1]) if f[1] in order else len(order))
    tables: dict[str, list[pd.DataFrame]] = {"history": [], "clients": [], "runs": []}
    for path, name, seed, history in found:
        clients = read_table(path / "clients.csv")
        if "round" not in clients:
            raise FlocoError(f"{path} has no clients.csv any more: the run was changed")
        everybody = clients["client"].nunique()  # some may have failed in the last evaluation
        clients = clients[clients["round"] == clients["round"].max()]
        for kind, table in (("history", history), ("clients", clients), ("runs", _run_row(path, history, everybody))):
            tables[kind].append(pd.concat([pd.DataFrame({"method": name, "seed": seed}, index=table.index), table], axis=1))
    whole = {kind: pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"method": [], "seed": []}) for kind, parts in tables.items()}
    runs = _compared(whole["runs"], whole["history"], whole["clients"])
    return Results(whole["history"], whole["clients"], runs, {(name, seed): path for path, name, seed, _ in found})


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that decide its numbers, but for the seed."""
    return {f"{section}.{key}": value for section in ("data", "model", "training", "algorithm") for key, value in config[section].items()}


def unequal(paths: Iterable[Path]) -> str:
    """Return a sentence about settings in which runs that are shown side by side differ, beside their methods and step sizes; "" if there are none."""
    seen: dict[str, list[Any]] = {}
    for path in paths:
        for key, value in _settings(read_json(path / "run.json")["config"]).items():
            if not key.startswith("algorithm.") and key != "training.lr" and value not in seen.setdefault(key, []):
                seen[key].append(value)
    shown = [f"{key} ({', '.join(map(str, values))})" for key, values in seen.items() if len(values) > 1]
    return f"Not under equal conditions: these runs differ in {', '.join(shown)}." if shown else ""


def _run_row(path: Path, history: pd.DataFrame, clients: int) -> pd.DataFrame:
    """Return what one run says by itself, as one row."""
    last, rounds = history.iloc[-1], float(history["round"].iloc[-1])
    row = {"rounds": rounds, **{k: last[k] for k in _LAST}}
    row |= {"steps_per_client": (history["steps"].sum() + last["steps_adapt"]) / clients}
    row |= {f"{what}_{way}": history[f"{what}_{way}"].sum() / rounds for what in ("parameters", "bytes") for way in ("down", "up")}
    since = history["round"].diff().fillna(history["round"].iloc[0])
    row |= {k: float(np.average(history[k].astype(float), weights=since)) for k in map(str, history) if k.startswith("update_variance")}
    return pd.DataFrame([row | {"seconds": read_table(path / "timings.csv")["seconds"].sum()}])


def target(history: pd.DataFrame, column: str) -> float:
    """Return FedAvg's mean over its last tenth of the rounds (at least its last evaluation), NaN without FedAvg."""
    rows = history[history["method"] == "fedavg"]
    late = rows[rows["round"] > 0.9 * rows["round"].max()]
    return float(late[column].mean()) if len(late) else float("nan")


def _compared(runs: pd.DataFrame, history: pd.DataFrame, clients: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of single runs with what they are beside others of the same seed."""
    runs = runs.copy()
    i: Any  # the label of a row, whose kind pandas leaves open
    for i, run in runs.iterrows():
        mine, rest = (t[t["seed"] == run["seed"]] for t in (history, clients))
        for column in ("accuracy_global", "accuracy_personal"):
            wanted = target(mine, column)
            reached = mine[(mine["method"] == run["method"]) & (mine[column] >= wanted)]["round"]
            runs.loc[i, f"target_{column}"] = wanted
            runs.loc[i, f"first_round_{column}"] = reached.min() if len(reached) else float("nan")
        accuracies = rest.pivot(index="client", columns="method", values="accuracy_personal")
        for column, rival in _RIVALS.items():
            both = accuracies[[run["method"], rival]].dropna() if rival in accuracies and rival != run["method"] else accuracies.iloc[:0]
            runs.loc[i, column] = (both[run["method"]] > both[rival]).mean() if len(both) else float("nan")
            runs.loc[i, f"{column}_left_out"] = len(accuracies) - len(both) if len(both) else float("nan")
        base = runs[(runs["method"] == "fedavg") & (runs["seed"] == run["seed"])]
        for column in _OVERHEAD:
            one = float(base[column].iloc[0]) if len(base) else float("nan")
            runs.loc[i, f"{column}_ratio"] = run[column] / one if one else float("nan")
    return runs


def methods(results: Results) -> pd.DataFrame:
    """Return one row a method: number of seeds, and mean and standard deviation (`_seed_std`) over seeds of every column of `runs`.

    A mean is empty if any of its values is: a first round that one seed never reached has no mean.
    """
    rows = []
    for name in results.names:
        mine = results.runs[results.runs["method"] == name].drop(columns=["method", "seed"])
        spread = mine.std(ddof=1) if len(mine) > 1 else pd.Series(np.nan, index=mine.columns)
        both = {k: v for c in map(str, mine) for k, v in ((c, mine[c].mean(skipna=False)), (f"{c}_seed_std", spread[c]))}
        rows.append({"method": name, "seeds": len(mine), **both})
    return pd.DataFrame(rows)


def left_out(made: pd.DataFrame) -> str:
    """Return a sentence about clients that "better than" says nothing of, "" if there are none; `made` is the table of methods."""
    shown = [
        f"{row['method']} against {rival} {row[f'{column}_left_out']:g}" for _, row in made.iterrows() for column, rival in _RIVALS.items() if row.get(f"{column}_left_out", 0) > 0
    ]
    return f"Left out of 'better than', because they were not evaluated under both methods (clients, mean over seeds): {', '.join(shown)}." if shown else ""


def pairs(results: Results, reference: str, column: str = "accuracy_personal") -> pd.DataFrame:
    """Return the paired comparison of `reference` with every other method over all clients of all common seeds.

    `p` is Wilcoxon's signed-rank test (two-sided) of the clients' differences, `p_holm` the same after Holm's correction for
    the number of methods. Clients of one run share a model and are not independent: p is too small rather than too large.
    """
    from scipy.stats import wilcoxon

    table = results.clients.pivot_table(index=["seed", "client"], columns="method", values=column, sort=False)
    rows: list[dict[str, Any]] = []
    for name in (n for n in results.names if n in table and n != reference):
        both = table[[reference, name]].dropna()
        if not len(both):
            continue  # no seed in common
        gap = (both[reference] - both[name]).round(9)  # equal gaps must be equal numbers to the test
        p = float(wilcoxon(gap).pvalue) if (gap != 0).any() else 1.0
        seeds = gap.groupby(level="seed").mean()
        counts = {"better": int((gap > 0).sum()), "equal": int((gap == 0).sum()), "worse": int((gap < 0).sum())}
        rows.append(
            {"reference": reference, "method": name, "clients": len(gap), "mean_difference": gap.mean(), **counts, "seeds_better": f"{(seeds > 0).sum()}/{len(seeds)}", "p": p}
        )
    ordered = sorted(rows, key=lambda r: float(str(r["p"])))
    corrected = 0.0
    for i, row in enumerate(ordered):
        corrected = max(corrected, min(1.0, float(str(row["p"])) * (len(rows) - i)))
        row["p_holm"] = corrected
    return pd.DataFrame(rows)


def write(results: Results, folder: Path, reference: str) -> None:
    """Write all tables as CSV files into a folder; pairs are those of `reference` with all others, none as long as it has no run."""
    made = {"history": results.history, "clients": results.clients, "runs": results.runs, "methods": methods(results), "pairs": pd.DataFrame()}
    if reference in results.names:
        made["pairs"] = pairs(results, reference)
    for name, table in made.items():
        replace_file(folder / f"{name}.csv", table.to_csv(index=False).encode() if len(table) else b"")
