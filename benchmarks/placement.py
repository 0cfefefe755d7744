"""How accurately does a signal place a client? Compare participants' later signals with their centers.

    python benchmarks/placement.py [-o placement.csv]

Every client probes on the simplex of a later round, as a newcomer does, and the map stored by the assignment in round
tau places its signal. Reported are means over clients and three seeds: the L1 distance of this point from the client's
center (`apart`), that of the centers of two clients (`others`), and the share of clients whose point is nearest to the
center of a client of the same fold, or without folds to its own (`nearest`). Data: digits (20 clients), Fashion-MNIST
(50 clients) and vowel (15 speakers, no folds); needs data/fashion-mnist.npz and vowel.npz. About ten minutes on two
cores.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import floco
from floco.client.setup import Setup
from floco.engines.jobs import Job, perform
from floco.runs.source import federation
from floco.runs.toml import read
from floco.server.progress import Progress

LATER = (1, 10, 30)
"""Rounds after tau."""


@dataclass
class Case:
    name: str
    config: str | None
    changes: tuple[str, ...]
    folds: int | None


CASES = (
    Case("digits", None, (), 5),
    Case("fashion-mnist", "benchmarks/fashion-mnist.toml", ("training.rounds=60", "algorithm.assign_at=30"), 5),
    Case("vowel", "configs/vowel.toml", ("training.rounds=60",), None),
)


def rows(case: Case, seed: int) -> list[dict[str, Any]]:
    changes = [*case.changes, f"seed={seed}", f"training.rounds={60 if case.config else 100}"]
    config = read(case.config and Path(case.config), changes)
    made, kept = federation(config), dict[int, Progress]()

    def watch(progress: Progress) -> None:
        if progress.round - int(config.algorithm.assign_at) in LATER:
            kept[progress.round - int(config.algorithm.assign_at)] = progress

    names = ("rounds", "fraction", "epochs", "batch_size", "lr", "momentum", "weight_decay")
    settings = {"seed": seed, **{n: getattr(config.training, n) for n in names}}
    model, last = floco.model(config.model.name, made), config.training.rounds
    setup = floco.fit(model, made, config.algorithm, evaluate_every=last, watch=watch, **settings).setup
    same = {"data": case.name, "seed": seed}
    return [{**same, "rounds after": later, **placed(setup, p, case.folds)} for later, p in kept.items()]


def placed(setup: Setup, progress: Progress, folds: int | None) -> dict[str, float]:
    algorithm, state, ids = setup.algorithm, progress.state, setup.federation.ids
    updates = [perform(setup, Job(c, "probe", algorithm.message(state, c, "probe"))).update for c in ids]
    signals = torch.stack([algorithm.mixing.signal(state.shared, u.shared) for u in updates])
    where = algorithm.place(state, signals)
    centers = torch.stack([state.by_client[c]["center"] for c in ids])
    apart, others = (where - centers).abs().sum(1), torch.cdist(centers, centers, p=1)
    nearest = torch.cdist(where, centers, p=1).argmin(1)
    own = torch.arange(len(ids))
    right = nearest == own if folds is None else nearest % folds == own % folds
    between = float(others.sum() / (len(ids) * (len(ids) - 1)))
    return {"apart": float(apart.mean()), "nearest": float(right.double().mean()), "others": between}


if __name__ == "__main__":
    table = pd.DataFrame([row for case in CASES for seed in range(3) for row in rows(case, seed)])
    if "-o" in sys.argv:
        table.to_csv(sys.argv[sys.argv.index("-o") + 1], index=False, float_format="%.4f")
    means = table.groupby(["data", "rounds after"], sort=False).mean(numeric_only=True)
    print(means.drop(columns="seed").round(3).to_string())
