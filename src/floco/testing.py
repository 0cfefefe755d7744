"""The contract of a method, as a check that its author can run: `check_algorithm(MyMethod())`."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from floco.client.predict import find_global_model
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.network import build_network
from floco.core.values import Combined, Tensors, Training
from floco.data.federation import Client, Federation
from floco.engines.engine import Engine, start_engine
from floco.runs.checkpoint import Store
from floco.runs.config import REGISTRIES
from floco.server.progress import Plan, Progress
from floco.server.rounds import initialize, rounds

_SIZES = (15, 90, 21, 40, 16, 60, 28, 17, 33)
_ROUNDS = 6


def federation(sizes: tuple[int, ...] = _SIZES, classes: int = 3, features: int = 5) -> Federation:
    """Return a small federation: Gaussian classes; client k has `sizes[k]` samples, most of class k mod C."""
    g = torch.Generator().manual_seed(0)
    middles = 2 * torch.randn(classes, features, generator=g)
    labels, clients, start = [], [], 0
    for k, n in enumerate(sizes):
        mine = torch.where(torch.rand(n, generator=g) < 0.6, k % classes, torch.randint(classes, (n,), generator=g))
        ends = torch.arange(start, start + n - 4), torch.arange(start + n - 4, start + n)
        clients.append(Client(f"client-{k}", *ends))
        labels.append(mine)
        start += n
    y = torch.cat(labels)
    x = middles[y] + torch.randn(len(y), features, generator=g)
    return Federation(x, y, tuple(clients), tuple(f"class {c}" for c in range(classes)))


def model(features: int = 5, classes: int = 3) -> nn.Module:
    """Return a small network with a body, buffers and a head."""
    body = [nn.Linear(features, 7), nn.BatchNorm1d(7), nn.Tanh()]
    return nn.Sequential(*body, nn.Linear(7, classes))


def check_algorithm(algorithm: Algorithm) -> None:
    """Check that a method keeps the contract: it trains, with worker processes to the same bits, and resumes exactly.

    Six rounds on nine clients of unequal sizes, three of whom train in a round. Not tried: engine `cohort`, a global
    test part, local buffers, Flower.

    Args:
        algorithm: the method, with the settings to try it with.

    Raises:
        AssertionError: it breaks the contract; the message says what must hold.

    >>> from floco.algorithms import FedAvg
    >>> check_algorithm(FedAvg())
    """
    try:
        _check(algorithm)
    except AssertionError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, FlocoError) else f"{type(error).__name__}: "
        raise AssertionError(f"{kind}{error}") from error


def _check(algorithm: Algorithm) -> None:
    REGISTRIES["algorithm"].check(type(algorithm))
    _hold(hash(algorithm) == hash(pickle.loads(pickle.dumps(algorithm))), "it must be hashable, and survive pickling")
    setup = _setup(algorithm, 0)
    start = initialize(setup)
    first = {n: t.clone() for n, t in start.state.shared.items()}
    passed = _train(setup, start, "serial")
    _hold(_same(first, start.state.shared), "values must be replaced, never changed: the first round changed its state")
    _check_rounds(setup, passed)
    last = passed[-1]
    _hold(_equal(last, _train(setup, initialize(setup), "serial")[-1]), "two runs with one seed must be equal")
    _hold(not _equal(last, _train(s := _setup(algorithm, 1), initialize(s), "serial")[-1]), "a seed must matter")
    if "fork" in multiprocessing.get_all_start_methods():
        others = _train(setup, initialize(setup), "processes")[-1]
        _hold(_equal(last, others), "worker processes must give the bits of one process: keep no state in the method")
    _hold(_resumes(setup, passed[2], last), "a run must resume to the same bits: keep no state in the method")


def _hold(condition: bool, words: str) -> None:
    if not condition:
        raise AssertionError(words)


def _setup(algorithm: Algorithm, seed: int) -> Setup:
    training = Training(rounds=_ROUNDS, fraction=1 / 3, batch_size=8, lr=0.1)
    net = build_network(model, seed=seed, sample=torch.zeros(2, 5))
    return Setup(federation(), net, algorithm.resolved(training, net.layout), training, seed)


def _train(setup: Setup, start: Progress, kind: str) -> list[Progress]:
    running: Engine
    with closing(start_engine(setup, kind, 2 if kind == "processes" else 1)) as running:
        return list(rounds(setup, running, Plan(evaluate_every=1, max_failed=0), start))


def _check_rounds(setup: Setup, passed: list[Progress]) -> None:
    layout = setup.network.layout
    for progress in passed:
        floating = {n: t for n, t in progress.state.shared.items() if t.is_floating_point()}
        broken = [n for n, t in floating.items() if not bool(torch.isfinite(t).all())]
        _hold(not broken, f"round {progress.round}: {', '.join(broken)} are not finite")
    facts = setup.facts(next(iter(setup.clients)))
    message = setup.algorithm.message(passed[-1].state, next(iter(setup.clients)), "evaluate")
    memory = passed[-1].memories.get(next(iter(setup.clients))) or setup.algorithm.start(setup.network, seed=0)
    both = setup.models(setup.algorithm.begin(message, memory, facts), facts)
    find_global_model(setup, message)  # for the server, which is no client: facts.n_train is 0
    for which, tensors in (("global", both.global_), ("personal", both.personal)):
        parts = tensors.networks if isinstance(tensors, Combined) else () if tensors is None else (tensors,)
        lacking = [n for n in layout.names if any(n not in part for part in parts)]
        _hold(not lacking, f"the {which} model lacks {', '.join(lacking)}")
    _hold(both != (None, None), "a method has a global model, a personal model, or both")


def _resumes(setup: Setup, before: Progress, last: Progress) -> bool:
    """Return whether a run that is written to disk, read again and continued ends as one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        Store.create(path, {}, {"config": {}}, initialize(setup))
        with closing(Store(path)) as store:
            store.note_changed(before.memories)
            store.save(before)
        with closing(Store(path)) as store:
            return _equal(last, _train(setup, store.load(), "serial")[-1])


def _same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def _equal(a: Progress, b: Progress) -> bool:
    own = (a.state.by_client, b.state.by_client), (dict(a.memories), dict(b.memories))
    alike = all(x.keys() == y.keys() and all(_same(x[c], y[c]) for c in x) for x, y in own)
    return alike and _same(a.state.shared, b.state.shared) and _same(a.state.kept, b.state.kept)
