"""From the results of single clients to the rows of the result tables: what a round cost, how good its models are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch

from floco.client.round import Scores
from floco.client.setup import Setup
from floco.core.algorithm import overlay
from floco.core.metrics import Score, mean, spread, worst
from floco.core.task import Task
from floco.core.values import ClientInfo, Layout, Lazy, Row, ServerState, Update
from floco.engines.jobs import Job, Result

SPREAD = tuple(f"update_variance{group}{kind}" for group in ("", "_body", "_head") for kind in ("", "_relative"))
"""Columns of the variance of the clients' updates."""
_AT_ONCE = 2**20  # elements of a parameter of which all updates are in memory together


@dataclass(frozen=True)
class Evaluation:
    """The evaluation after a round: one history row, and one row per client."""

    round: int
    history: Row
    clients: tuple[Row, ...]


@dataclass(frozen=True)
class Counts:
    """Counts since the last evaluation."""

    failed: int = 0
    rounds: int = 0
    steps: int = 0
    """Optimiser steps of all clients, in training and probes."""
    parameters_down: int = 0
    parameters_up: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    spread: Mapping[str, float] = field(default_factory=dict)
    """Sums over the rounds of `update_spread`."""

    def __add__(self, other: Counts) -> Counts:
        """Return the sum of both."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "spread"}
        keys = {**self.spread, **other.spread}
        return Counts(**sums, spread={k: self.spread.get(k, 0.0) + other.spread.get(k, 0.0) for k in keys})

    @property
    def row(self) -> Row:
        """The counts as columns of history.csv; variances are means over the rounds, or empty if none is known."""
        names = ("steps", "parameters_down", "parameters_up", "bytes_down", "bytes_up")
        means = {k: self.spread[k] / self.rounds if k in self.spread else None for k in SPREAD}
        return {"clients_failed": self.failed, **{n: getattr(self, n) for n in names}, **means}


def count_round(setup: Setup, state: ServerState, jobs: Sequence[Job], results: Sequence[Result]) -> Counts:
    """Return the counts of one round, from the state before it, its jobs and their results."""
    updates = [r.update for r in results if r.update is not None]
    failed = sum(r.failure is not None for r in results)
    down = count_elements(t for j in jobs for t in (j.message.shared, j.message.own))
    up = count_elements(t for u in updates for t in (u.shared, u.extra))
    steps = sum(r.steps for r in results)
    return Counts(failed, 1, steps, down[0], up[0], down[1], up[1], _spread(setup, state, updates))


def count_elements(groups: Iterable[Lazy]) -> tuple[int, int]:
    """Return the number of elements and of bytes."""
    sizes = [(t.numel(), t.nbytes) for tensors in groups for t in tensors.values()]
    return sum(n for n, _ in sizes), sum(b for _, b in sizes)


def _spread(setup: Setup, state: ServerState, updates: Sequence[Update]) -> dict[str, float]:
    trained = [u for u in updates if u.purpose == "train"]
    effective = setup.algorithm.effective
    after = [effective(overlay(state.shared, u.shared)) for u in trained]
    return update_spread(effective(state.shared), after, [u.weight for u in trained], setup.network.layout)


def update_spread(before: Lazy, after: Sequence[Lazy], weights: Sequence[float], layout: Layout) -> dict[str, float]:
    """Return the variance of the clients' updates of the global model, for all its parameters, the body and the head.

    With d_k = w_k - w_t, weights p_k (summing to 1) and d = sum_k p_k d_k, the variance is `sum_k p_k |d_k - d|^2`; the
    relative one is divided by |d|^2. Only parameters that were sent count; groups without any are left out.
    """
    total = sum(weights)
    sums: dict[str, float] = {}
    parts: dict[str, list[tuple[float, float]]] = {"": [], "_body": [], "_head": []}
    for name in (n for n in layout.parameters if n in before and n in after[0]):
        for start in range(0, before[name].numel(), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            old, new = before[name].flatten()[some], torch.stack([a[name].flatten()[some] for a in after])
            steps = new.double() - old.double()  # (K, P)
            p = torch.tensor(weights, dtype=torch.float64) / total
            middle = p @ steps
            found = (float(p @ (steps - middle).square().sum(1)), float(middle @ middle))
            for group in ("", "_head" if name in layout.head else "_body"):
                parts[group].append(found)
    for group, pairs in parts.items():
        if pairs:
            variance, square = (sum(column) for column in zip(*pairs, strict=True))
            relative = variance / square if square else math.inf if variance else 0.0
            sums |= {f"update_variance{group}": variance, f"update_variance{group}_relative": relative}
    return sums


def global_score(setup: Setup, result: Result) -> Score | None:
    """Return what a result adds to the score of the global model; None if nothing.

    The score is measured on the global test part or, if there is none, on the test parts of all clients. With local
    buffers there is then no score: each client evaluates another network.
    """
    if setup.federation.y_test is not None:
        return result.test_score
    return None if result.scores is None or setup.local_buffers else result.scores.global_


def client_row(task: Task, round_: int, client: ClientInfo, participated: int, scores: Scores, taken: str = "") -> Row:
    """Return one client's row; columns of a model that the method does not have stay empty.

    It has a column `delivered` if the client has `taken` one of several candidates.
    """
    both = {"personal": scores.personal, "global_local": scores.global_}
    n_test = next((s.n for s in both.values() if s is not None), 0)
    row: Row = {"round": round_, "client": client.id, "n_train": client.n_train, "n_test": n_test}
    row["participated"] = participated
    row |= {"delivered": taken} if taken else {}
    for metric in task.metrics:
        row |= {f"{metric}_{which}": None if s is None else getattr(s, metric) for which, s in both.items()}
    return row


def _summary(task: Task, clients: Sequence[Row], which: str) -> Row:
    """Return means of the clients' metrics, and spread and worst of the primary one, over those that have them."""
    primary, higher = task.primary, task.metrics.higher
    row: Row = {}
    for metric in task.metrics:
        known = [r for r in clients if r[f"{metric}_{which}"] is not None]  # e.g. no R2 of a single sample
        values, n = _column(known, f"{metric}_{which}"), _column(known, "n_test")
        row[f"{metric}_{which}"] = mean(values) if n else None
        row[f"{metric}_{which}_weighted"] = mean(values, n) if n else None
    reached = _column(clients, f"{primary}_{which}")
    row[f"{primary}_{which}_std"] = spread(reached) if reached else None
    for percent in (5, 10):
        row[f"{primary}_{which}_worst{percent}"] = worst(reached, percent / 100, higher=higher) if reached else None
    return row


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [v for r in rows if isinstance(v := r[name], int | float)]


def summarize(
    task: Task, round_: int, clients: Sequence[Row], global_: Score | None, counts: Counts, adapted: int = 0
) -> Evaluation:
    """Return the evaluation of a round.

    Args:
        task: names the metrics.
        round_: the round after which the models were evaluated.
        clients: the clients' rows.
        global_: the score of the global model on the global test part, or without such a part on the union of the
            clients' test parts; None if the method has no global model, or if buffers are local.
        counts: counts since the previous evaluation.
        adapted: optimiser steps of all clients within this evaluation (FedAvg+FT).
    """
    history: Row = {"round": round_}
    history |= {f"{metric}_global": value for metric, value in task.values(global_).items()}
    history |= _summary(task, clients, "personal") | _summary(task, clients, "global_local")
    history |= {"clients_evaluated": len(clients), "clients_trained": sum(1 for r in clients if r["participated"])}
    return Evaluation(round_, {**history, **counts.row, "steps_adapt": adapted}, tuple(clients))
