"""Does Floco lose where the assignment scatters clients of one kind? python benchmarks/scatter.py COMPARISON [CLIENTS.csv]

For every seed and fold (client i is in fold i mod 5): the mean L1 distance between the centers of its clients, and how far Floco's personal
accuracy is above FedAvg+FT's, in points; then the correlation of the two. Accuracies are those of CLIENTS.csv, if that is given: of methods that are not in the comparison.
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
table = pd.DataFrame({"distance of centers": pd.Series(scattered), "floco - fedavg+ft": accuracy["floco"] - accuracy["fedavg+ft"]})
print(table.round(2).to_string())
print(f"correlation {table.corr().iloc[0, 1]:.2f}")
