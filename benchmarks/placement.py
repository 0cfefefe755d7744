"""How accurately does a signal place a client? Participants' own later signals, by the map of round tau, against their centers.

    python benchmarks/placement.py [-o placement.csv]

Every client probes on the simplex of some later round, as a newcomer does, and its signal goes through the stored map of the assignment. L1 distance of
where it lands from its center (`apart`) and of two clients' centers (`others`), and the share of clients that land nearest to themselves or to one of their
fold (`nearest`), means over clients and three seeds. Digits (20 clients),
Fashion-MNIST (50 clients) and vowel (15 speakers, no folds). Needs data/fashion-mnist.npz and vowel.npz. About ten minutes on two cores.
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
from floco.runs.config import read
from floco.runs.session import federation
from floco.server.rounds import Progress

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
    config = read(case.config and Path(case.config), [*case.changes, f"seed={seed}", f"training.rounds={60 if case.config else 100}"])
    made, kept = federation(config), dict[int, Progress]()

    def watch(progress: Progress) -> None:
        if progress.round - int(config.algorithm.assign_at) in LATER:
            kept[progress.round - int(config.algorithm.assign_at)] = progress

    settings = {n: getattr(config.training, n) for n in ("rounds", "fraction", "epochs", "batch_size", "lr", "momentum", "weight_decay")}
    run = floco.fit(floco.model(config.model.name, made), made, config.algorithm, seed=seed, evaluate_every=config.training.rounds, watch=watch, **settings)
    return [{"data": case.name, "seed": seed, "rounds after": later, **placed(run.setup, p, case.folds)} for later, p in kept.items()]


def placed(setup: Setup, progress: Progress, folds: int | None) -> dict[str, float]:
    algorithm, state, ids = setup.algorithm, progress.state, setup.federation.ids
    updates = [perform(setup, Job(c, "probe", algorithm.message(state, c, "probe"))).update for c in ids]
    where = algorithm.assignment(state).place(torch.stack([algorithm.mixing.signal(state.shared, u.shared) for u in updates]))
    centers = torch.stack([state.by_client[c]["center"] for c in ids])
    apart, others = (where - centers).abs().sum(1), torch.cdist(centers, centers, p=1)
    nearest = torch.cdist(where, centers, p=1).argmin(1)
    own = torch.arange(len(ids))
    right = nearest == own if folds is None else nearest % folds == own % folds
    return {"apart": float(apart.mean()), "nearest": float(right.double().mean()), "others": float(others.sum() / (len(ids) * (len(ids) - 1)))}


if __name__ == "__main__":
    table = pd.DataFrame([row for case in CASES for seed in range(3) for row in rows(case, seed)])
    if "-o" in sys.argv:
        table.to_csv(sys.argv[sys.argv.index("-o") + 1], index=False, float_format="%.4f")
    print(table.groupby(["data", "rounds after"], sort=False).mean(numeric_only=True).drop(columns="seed").round(3).to_string())
