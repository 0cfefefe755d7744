"""Is Floco worse where the assignment scatters similar clients? python benchmarks/scatter.py COMPARISON [CLIENTS.csv]

For every seed and fold (client i is in fold i mod 5): the mean L1 distance between the centers of its clients, and
Floco's personal accuracy minus FedAvg+FT's, in points; then the correlation of the two. CLIENTS.csv provides the
accuracies if the comparison does not have both methods.
"""

import sys
from contextlib import closing
from pathlib import Path

import pandas as pd
import torch

from floco.analysis import comparison
from floco.runs.checkpoint import Store
from floco.storage.tables import read_table

FOLDS = 5
made = comparison.reopen(Path(sys.argv[1]))
clients = read_table(Path(sys.argv[2])) if len(sys.argv) > 2 else comparison.results(made).clients
clients["fold"] = clients["client"].str.rsplit("-").str[-1].astype(int) % FOLDS
accuracy = 100 * clients.pivot_table(index=["seed", "fold"], columns="method", values="accuracy_personal")
scattered = {}
for (method, seed), path in made.runs.items():
    if method == "floco":
        with closing(Store(path)) as store:
            known = store.load().state.by_client
        centers = torch.stack([known[f"client-{i}"]["center"] for i in range(len(known))])
        for fold in range(FOLDS):
            distances = torch.cdist(centers[fold::FOLDS], centers[fold::FOLDS], p=1)
            scattered[seed, fold] = float(distances.sum() / (len(distances) * (len(distances) - 1)))
ahead = accuracy["floco"] - accuracy["fedavg+ft"]
table = pd.DataFrame({"distance of centers": pd.Series(scattered), "floco - fedavg+ft": ahead})
print(table.round(2).to_string())
print(f"correlation {table.corr().iloc[0, 1]:.2f}")
