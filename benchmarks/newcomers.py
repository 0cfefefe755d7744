"""Held-out clients, compared with a second run in which they took part; the runs are made by newcomers.sh.

    python benchmarks/newcomers.py runs/newcomers/seed* -o benchmarks/results/newcomers.csv

Each folder has two runs, `without` (data.held_out) and `with`. Prints the tables of docs/newcomers.md.
"""

import math
import sys
from pathlib import Path

import pandas as pd
from scipy.stats import t

from floco.storage.tables import read_table

if __name__ == "__main__":
    where = sys.argv.index("-o")
    parts = []
    for folder in map(Path, sys.argv[1:where]):
        new = read_table(folder / "without" / "newcomers.csv")
        took_part = read_table(folder / "with" / "clients.csv").query("round == round.max()").set_index("client")
        for name in ("accuracy_personal", "accuracy_global_local"):
            new[f"with_{name}"] = new["client"].map(took_part[name])
        parts.append(new.assign(folder=folder.name))
    table = pd.concat(parts)
    table.to_csv(sys.argv[where + 1], index=False)
    print((100 * table.pivot_table(index="model", columns="size", values="accuracy")).round(1).to_string())
    placed = table[table.model == "placed"]
    print(placed.pivot_table(index="rule", columns="size", values="client", aggfunc="count").to_string())
    for number, rows in placed.groupby("size", sort=False):
        apart = 100 * (rows["accuracy"] - rows["with_accuracy_personal"])
        half = t.ppf(0.975, len(apart) - 1) * apart.std() / math.sqrt(len(apart))
        interval = f"95 % interval {apart.mean() - half:+.2f} to {apart.mean() + half:+.2f} ({len(apart)} pairs)"
        print(f"placed with {number} samples minus taken part: {apart.mean():+.2f} points, {interval}")
