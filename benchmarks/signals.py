"""What should a signal be divided by before the assignment? Clients of unequal size, three forms of the signal.

    python benchmarks/signals.py [-o signals.csv]

Fashion-MNIST, 5-Fold, 50 clients of 15 to 256 training samples (every fold has all sizes) and 256 test samples, 10 a round, 60 rounds, assigned in round 30,
three seeds. `raw`: the pseudo-gradient as it is; `steps`: divided by the client's number of steps (times lr, which all share); `length`: divided by its length.
`pairs`: mean L1 distance between the centers of a large and a small client of one fold; `folds`: between clients of two folds. Needs data/fashion-mnist.npz.
About ten minutes on two cores.
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
    """Floco with signals divided by the number of steps."""

    def _signals(self, state: ServerState, updates: Sequence[Update]) -> torch.Tensor:
        steps = torch.tensor([EPOCHS * math.ceil(u.weight / BATCH) for u in updates])
        return super()._signals(state, updates) / steps[:, None]


def unequal(seed: int) -> Federation:
    whole = floco.load("npz:data/fashion-mnist.npz").split(floco.Folds(FOLDS, share=0.8), clients=CLIENTS, samples=512, test_share=0.5, seed=seed)
    rng = np.random.default_rng(seed)
    clients = [replace(c, train=c.train[np.sort(rng.permutation(len(c.train))[: SIZES[i // FOLDS]])]) for i, c in enumerate(whole.clients)]
    return replace(whole, clients=tuple(clients))


def row(form: str, seed: int) -> dict[str, float | int | str]:
    federation = unequal(seed)
    algorithm = (Stepwise if form == "steps" else floco.Floco)(endpoints=10, assign_at=30)
    raw = patch("floco.simplex.assignment.lengths", lambda rows: torch.ones(len(rows), dtype=torch.float64))
    with nullcontext() if form == "length" else raw:
        run = floco.fit(
            floco.model("femnist-cnn", federation), federation, algorithm, rounds=60, fraction=0.2, epochs=EPOCHS, batch_size=BATCH, lr=0.05, seed=seed, evaluate_every=60
        )
    centers = torch.stack([run.progress.state.by_client[c.id]["center"] for c in federation.clients])
    apart = torch.cdist(centers, centers, p=1)
    fold, size = torch.arange(CLIENTS) % FOLDS, torch.arange(CLIENTS) // FOLDS
    same = fold[:, None] == fold
    unlike = same & (size[:, None] >= 7) & (size < 3)
    small = run.clients.accuracy_personal[run.clients.n_train < 50].mean()
    last = run.history.iloc[-1]
    found = {"pairs": float(apart[unlike].mean()), "folds": float(apart[~same].mean())}
    return {"form": form, "seed": seed, **found, "global": last.accuracy_global, "personal": last.accuracy_personal, "worst10": last.accuracy_personal_worst10, "small": small}


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
