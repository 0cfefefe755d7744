"""Small real parts that the tests share: a federation of a few unequal clients, and setups to train on it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from floco.cli import app
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.network import network
from floco.core.values import Tensors, Training
from floco.data.federation import Client, Federation
from floco.engines.engine import Engine, Serial
from floco.server import rounds as loop
from floco.server.rounds import Plan, Progress

GOLDEN = Path(__file__).parent / "golden"
IDS = ("north", "south", "east", "west", "Straße 7/b", "0")


UNEQUAL = (15, 200, 21, 40, 16, 90, 28, 17, 120, 33, 60, 24)
"""Samples of clients as a natural federation has them."""


def blobs(ids: tuple[str, ...] = IDS, classes: int = 3, features: int = 5, seed: int = 0, sizes: tuple[int, ...] | None = None) -> Federation:
    """Classes around random centers; client i has 12 + 5i samples (or those of `sizes`, and a number as its id), mostly of class i mod C."""
    if sizes is not None:
        ids = tuple(map(str, range(len(sizes))))
    g = torch.Generator().manual_seed(seed)
    middles = 2 * torch.randn(classes, features, generator=g)
    x, y, clients = [], [], []
    for i, name in enumerate(ids):
        n = 12 + 5 * i if sizes is None else sizes[i]
        labels = torch.where(torch.rand(n, generator=g) < 0.6, i % classes, torch.randint(classes, (n,), generator=g))
        start = sum(len(part) for part in y)
        clients.append(Client(name, torch.arange(start, start + n - 4), torch.arange(start + n - 4, start + n)))
        y.append(labels)
        x.append(middles[labels] + torch.randn(n, features, generator=g))
    return Federation(torch.cat(x), torch.cat(y), tuple(clients), tuple(f"class {c}" for c in range(classes)))


def small_net(features: int = 5, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 7), nn.Tanh(), nn.Linear(7, classes))


def make(algorithm: Algorithm, *, federation: Federation | None = None, model: Any = None, seed: int = 0, **training: Any) -> Setup:
    """A setup of 6 rounds, half of the clients each, batches of 8."""
    settings = Training(**{"rounds": 6, "fraction": 0.5, "epochs": 2, "batch_size": 8, "lr": 0.1, **training})
    net = network(small_net if model is None else model, seed=seed)
    return Setup(blobs() if federation is None else federation, net, algorithm.resolved(settings, net.layout), settings, seed)


def train(setup: Setup, engine: Engine | None = None, plan: Plan | None = None) -> list[Progress]:
    """All rounds of a setup, one progress each."""
    return list(loop.rounds(setup, engine or Serial(setup), plan or Plan(evaluate_every=1), loop.begin(setup)))


def same(a: Tensors, b: Tensors) -> bool:
    """Equal names, shapes and bits."""
    return a.keys() == b.keys() and all(a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a)


def floco(*args: object) -> Result:
    """What a command of this process gives."""
    return CliRunner().invoke(app, [str(a) for a in args])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_blobs(path: Path, ids: tuple[str, ...] = IDS, *, test: int = 0, seed: int = 0) -> Path:
    """The blobs as an .npz file with natural clients, 40 samples each, and a global test part of `test` samples."""
    g = np.random.default_rng(seed)
    middles = 2 * g.normal(size=(3, 5))
    y = np.concatenate([np.where(g.random(40) < 0.6, i % 3, g.integers(3, size=40)) for i in range(len(ids))])
    y_test = g.integers(3, size=test)
    x, x_test = ((middles[labels] + g.normal(size=(len(labels), 5))).astype("float32") for labels in (y, y_test))
    client = np.repeat(np.array(ids), 40)
    if test:
        np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test, client=client)
    else:
        np.savez(path, x=x, y=y, client=client)
    return path


@pytest.fixture
def write_toml(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write
