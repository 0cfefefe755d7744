"""A torch Dataset of your own, and an array that says which client each item belongs to."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_wine
from torch.utils.data import Dataset

import floco


# --8<-- [start:dataset]
class Wines(Dataset[Any]):
    """Chemical analyses of wines from three cultivars: items (13 measurements, cultivar)."""

    def __init__(self) -> None:
        self.table = load_wine()

    def __len__(self) -> int:
        return len(self.table.data)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, str]:
        return torch.from_numpy(self.table.data[i]), str(self.table.target_names[self.table.target[i]])


# --8<-- [end:dataset]

# --8<-- [start:run]
wines = Wines()
laboratory = np.array([f"laboratory-{i % 5}" for i in range(len(wines))])  # of each item

federation = floco.load(wines, client=laboratory).split(floco.Natural(), seed=0)
model = floco.model("mlp", federation)
run = floco.fit(model, federation, floco.Floco(endpoints=2), rounds=10, lr=0.1, fraction=1.0, seed=0)

print(run.clients[["client", "n_train", "accuracy_global_local", "accuracy_personal"]])
print(run.predict(wines.table.data[:2], "laboratory-0"))
# --8<-- [end:run]
