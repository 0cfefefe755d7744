"""Every task on its data set: Floco (`own`: with its recommended centers and step), FedAvg, FedAvg+FT and Local beside
one network trained on the pooled data.

    python benchmarks/tasks.py [--seeds 3] [NAME...]    mathachieve flights disruptions shapes shakespeare

NAME is that of configs/NAME.toml; fetch.py fetches the data. The federated runs are `floco compare`, in runs/NAME:
it goes on where it was stopped. The pooled network is the same one, trained on all clients' training rows for as many
passes as FedAvg makes on average. All models are scored on the same rows, each client's test part. Where TUNE says so,
every method and the pooled network try six settings on parts cut from the training parts, for every seed; otherwise all
have the configuration's.
results/tasks.csv has a row for every client, method and seed; then: python benchmarks/tables.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import floco
from floco.analysis.tuning import _FINE, cut_validation
from floco.core.settings import plain
from floco.data.federation import Client, Federation
from floco.runs import session, source
from floco.runs.config import Config
from floco.runs.toml import read
from floco.storage.tables import read_table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
NAMES = ("mathachieve", "flights", "disruptions", "shapes", "shakespeare")
METHODS = "floco,own=floco,fedavg,fedavg+ft,local"
OWN = ("-s", "own.centers=own", "-s", "own.step=middle")
MORE = {"mathachieve": ",floco+,ditto"}  # for regression.py
TUNE = {"mathachieve"}


def compare(name: str, seeds: int) -> Path:
    """Run or complete the comparison of a data set, and return its directory."""
    out = ROOT / "runs" / name
    methods = METHODS + MORE.get(name, "")
    command = ["resume", str(out)]
    if not (out / "comparison.json").exists():
        command = ["compare", str(ROOT / f"configs/{name}.toml"), "-a", methods, "--seeds", str(seeds), *OWN]
        command += ["--out", str(out), *(["--tune"] if name in TUNE else [])]
    floco_ = [sys.executable, "-c", "from floco.cli import main; main()"]
    subprocess.run([*floco_, *command], check=True, cwd=ROOT)
    return out


def pool(federation: Federation) -> Federation:
    """Return the federation with one client that has the rows of all."""
    parts = (torch.cat([getattr(c, part) for c in federation.clients]) for part in ("train", "test"))
    return replace(federation, clients=(Client("all", *parts),))


def train_pooled(config: Config, federation: Federation, lr: float) -> nn.Module:
    """Return the network of a configuration, trained on the pooled training parts."""
    given = config.training
    passes = max(1, round(given.rounds * given.fraction * given.epochs))
    training = plain(replace(given, rounds=passes, fraction=1.0, epochs=1, lr=lr))
    whole = pool(federation)
    model = floco.model(config.model.name, whole)
    run = floco.fit(model, whole, floco.FedAvg(), seed=config.seed, engine="serial", evaluate_every=passes, **training)
    return run.global_model()


@torch.no_grad()
def by_client(module: nn.Module, federation: Federation) -> dict[str, float]:
    """Return the primary metric of one model on each client's test part; nothing where it is not defined."""
    task, found = federation.task, {}
    for c in (c for c in federation.clients if len(c.test)):
        score = task.score(module(federation.inputs(c.test)), federation.y[c.test])
        if getattr(score, task.primary) is not None:
            found[c.id] = task.value(score)
    return found


def best_pooled(name: str, config: Config, federation: Federation) -> nn.Module:
    """Return the pooled network, with the learning rate that is best on parts cut from the training parts if TUNE."""
    lr = read(ROOT / f"configs/{name}.toml").training.lr  # that of `config` may have been tuned for FedAvg
    if name not in TUNE:
        return train_pooled(config, federation, lr)
    rates, sign = [lr * f for f in _FINE], 1 if config.task.metrics.higher else -1
    cut = cut_validation(federation, config.seed)
    values = {lr: sign * pd.Series(by_client(train_pooled(config, cut, lr), cut)).mean() for lr in rates}
    return train_pooled(config, federation, max(values, key=lambda lr: values[lr]))


def seeds_of(out: Path) -> list[tuple[Config, Federation]]:
    """Return configuration and data of each seed of a comparison."""
    found = [session.reopen(path) for path in sorted((out / "runs").glob("fedavg-seed*"))]
    for _, store in found:
        store.close()
    return [(config, source.federation(config)) for config, _ in found]


def rows(name: str, seeds: int) -> pd.DataFrame:
    """Return the primary metric by client, method and seed."""
    out = compare(name, seeds)
    table, pooled = read_table(out / "clients.csv"), []
    for config, federation in seeds_of(out):
        values = by_client(best_pooled(name, config, federation), federation)
        pooled += [{"method": "pooled", "seed": config.seed, "client": c, "value": v} for c, v in values.items()]
        print(name, "pooled, seed", config.seed, pd.Series(values).mean(), flush=True)
    metric = config.task.primary
    federated = table.rename(columns={f"{metric}_personal": "value"})[["method", "seed", "client", "value"]]
    federated = federated[federated["method"].isin(["floco", "own", "fedavg", "fedavg+ft", "local"])]
    made = pd.concat([federated, pd.DataFrame(pooled)], ignore_index=True)
    return made.assign(data=name, metric=metric)[["data", "metric", "method", "seed", "client", "value"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--seeds", type=int, default=3, help="of a comparison that is not begun (default: 3)")
    given = parser.parse_args()
    file = RESULTS / "tasks.csv"
    known = pd.read_csv(file, dtype={"client": str}) if file.exists() else None
    for name in given.names or NAMES:
        made = rows(name, given.seeds)
        known = made if known is None else pd.concat([known[known["data"] != name], made], ignore_index=True)
        known.to_csv(file, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
