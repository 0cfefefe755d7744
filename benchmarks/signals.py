"""How should signals be normalised before the assignment, if clients have unequal sizes?

    python benchmarks/signals.py [-o signals.csv]

Fashion-MNIST, 5-Fold, 50 clients with 15 to 256 training samples (all sizes in every fold) and 256 test samples, 10 per
round, 60 rounds, assignment in round 30, three seeds. `raw`: the pseudo-gradient; `steps`: divided by the client's
number of steps (lr is the same for all); `length`: divided by its norm. `pairs`: mean L1 distance between the centers
of a large and a small client of the same fold; `folds`: between clients of different folds. Needs
data/fashion-mnist.npz. About ten minutes on two cores.
"""

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

import floco
from floco.core.values import ServerState, Update
from floco.data.federation import Federation

CLIENTS, FOLDS, EPOCHS, BATCH = 50, 5, 3, 32
SIZES = np.geomspace(15, 256, CLIENTS // FOLDS).round().astype(int)


@dataclass(frozen=True)
class Stepwise(floco.Floco):
    """Floco with signals divided by the client's number of steps."""

    def _signals(self, state: ServerState, updates: Sequence[Update]) -> torch.Tensor:
        steps = torch.tensor([EPOCHS * math.ceil(u.weight / BATCH) for u in updates])
        return super()._signals(state, updates) / steps[:, None]


def unequal(seed: int) -> Federation:
    samples, sizes = floco.load("npz:data/fashion-mnist.npz"), {"samples": 512, "test_share": 0.5}
    whole = samples.split(floco.Folds(FOLDS, share=0.8), clients=CLIENTS, seed=seed, **sizes)
    rng, clients = np.random.default_rng(seed), []
    for i, c in enumerate(whole.clients):
        chosen = np.sort(rng.permutation(len(c.train))[: SIZES[i // FOLDS]])
        clients.append(replace(c, train=c.train[chosen]))
    return replace(whole, clients=tuple(clients))


def row(form: str, seed: int) -> dict[str, float | int | str]:
    federation = unequal(seed)
    algorithm = (Stepwise if form == "steps" else floco.Floco)(endpoints=10, assign_at=30)
    raw = patch("floco.simplex.assignment.lengths", lambda rows: torch.ones(len(rows), dtype=torch.float64))
    with nullcontext() if form == "length" else raw:
        training = {"rounds": 60, "fraction": 0.2, "epochs": EPOCHS, "batch_size": BATCH, "lr": 0.05}
        model = floco.model("femnist-cnn", federation)
        run = floco.fit(model, federation, algorithm, seed=seed, evaluate_every=60, **training)
    centers = torch.stack([run.progress.state.by_client[c.id]["center"] for c in federation.clients])
    apart = torch.cdist(centers, centers, p=1)
    fold, size = torch.arange(CLIENTS) % FOLDS, torch.arange(CLIENTS) // FOLDS
    same = fold[:, None] == fold
    unlike = same & (size[:, None] >= 7) & (size < 3)
    small = run.clients.accuracy_personal[run.clients.n_train < 50].mean()
    last = run.history.iloc[-1]
    found = {"pairs": float(apart[unlike].mean()), "folds": float(apart[~same].mean()), "global": last.accuracy_global}
    found |= {"personal": last.accuracy_personal, "worst10": last.accuracy_personal_worst10}
    return {"form": form, "seed": seed, **found, "small": small}


if __name__ == "__main__":
    rows = []
    for seed in range(3):
        for form in ("raw", "steps", "length"):
            rows.append(row(form, seed))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    if "-o" in sys.argv:
        table.to_csv(sys.argv[sys.argv.index("-o") + 1], index=False, float_format="%.4f")
    print(table.groupby("form", sort=False).mean(numeric_only=True).drop(columns="seed").round(4).to_string())
