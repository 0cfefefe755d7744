"""Replace some methods in the tables of an earlier comparison: python benchmarks/merge.py NEW FOLDER.

NEW is the directory of a comparison of these methods, FOLDER one of docs/comparison, with the same data, splits, seeds
and rounds. Columns that compare methods (targets, shares of better clients, ratios) are recomputed from both; seconds
keep their old values, since times of two days are not comparable. NEW/report.html shows both, for pictures.py; its
landscapes are those of NEW.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import pandas as pd

from floco.analysis import comparison, pairs, tables
from floco.analysis.report import sections as report
from floco.analysis.tables import Results
from floco.storage.tables import read_table


def merged(new: Results, folder: Path) -> Results:
    old = {name: read_table(folder / f"{name}.csv") for name in ("history", "clients", "runs")}
    order = list(dict.fromkeys(old["runs"]["method"]))
    both = {}
    for name, table in old.items():
        made = getattr(new, name)
        kept = table[~table["method"].isin(new.names)]
        keys = list(zip(made["method"], made["seed"], strict=True))
        known = set(zip(table["method"], table["seed"], strict=True))
        assert known.issuperset(keys), "other methods or seeds than before"
        if name == "runs":
            seconds = table.set_index(["method", "seed"])["seconds"]
            made = made.assign(seconds=[seconds[key] for key in keys])
        whole = pd.concat([kept, made], ignore_index=True)
        both[name] = whole.sort_values("method", key=lambda m: m.map(order.index), kind="stable", ignore_index=True)
    history, clients, runs = both["history"], both["clients"], both["runs"]
    compared = [c for c in runs if c.startswith(("target_", "first_round_", "better_than_")) or c.endswith("_ratio")]
    return Results(history, clients, tables.compare_runs(runs.drop(columns=compared), history, clients), new.paths)


if __name__ == "__main__":
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    results = merged(comparison.results(comparison.reopen(path)), folder)
    pairs.write(results, folder, results.names[0])
    with patch("floco.analysis.tables.load", lambda *_: results):
        report.write([path], path / "report.html")
    (folder / "report-landscape.csv").write_bytes((path / "report-landscape.csv").read_bytes())
