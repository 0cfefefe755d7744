"""Put methods that were run again into the tables of a comparison whose other runs stay: python benchmarks/merge.py NEW FOLDER.

NEW is the directory of a comparison of some of the methods, FOLDER one of docs/comparison; data, splits, seeds and rounds must be those of before. Columns that
compare methods (targets, shares that are better, ratios) are worked out again from both; seconds stay those of before, since two days cannot be compared. NEW/report.html
has the figures of both, for pictures.py: its landscapes are those of NEW.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import pandas as pd

from floco.analysis import comparison, tables
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
        assert set(zip(table["method"], table["seed"], strict=True)) >= set(zip(made["method"], made["seed"], strict=True)), "other methods or seeds than before"
        if name == "runs":
            seconds = table.set_index(["method", "seed"])["seconds"]
            made = made.assign(seconds=[seconds[key] for key in zip(made["method"], made["seed"], strict=True)])
        whole = pd.concat([kept, made], ignore_index=True)
        both[name] = whole.sort_values("method", key=lambda m: m.map(order.index), kind="stable", ignore_index=True)
    plain = both["runs"][[c for c in both["runs"] if not c.startswith(("target_", "first_round_", "better_than_")) and not c.endswith("_ratio")]]
    return Results(both["history"], both["clients"], tables._compared(plain, both["history"], both["clients"]), new.paths)


if __name__ == "__main__":
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    results = merged(comparison.results(comparison.reopen(path)), folder)
    tables.write(results, folder, results.names[0])
    with patch("floco.analysis.tables.load", lambda *_: results):
        report.write([path], path / "report.html")
    (folder / "report-landscape.csv").write_bytes((path / "report-landscape.csv").read_bytes())
