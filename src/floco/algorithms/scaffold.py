"""Federated averaging with control variates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from floco.core.algorithm import Algorithm
from floco.core.network import Network
from floco.core.values import Facts, Message, Phase, ServerState, Step, Tensors, Update, averaged, plain_loss, prefixed, weighted_mean

_C = "variate/"  # c, sent to everybody
_CI = "own variate/"  # c_i, kept by the client
_TOTAL = "samples"  # n, of the clients that c is the mean of


@dataclass(frozen=True)
class SCAFFOLD(Algorithm):
    """SCAFFOLD (Karimireddy et al., ICML 2020, algorithm 1, option II): local steps with g - c_i + c.

    c_i+ = c_i - c + (w_t - w_i) / (steps lr), and on the server c <- c + sum_S n_i / n (c_i+ - c_i), with n the training samples
    of all clients; all variates start at zero. So c = sum_i n_i / n c_i in every round, whoever took part. For clients of equal
    size it is the paper's c + |S| / K mean_S(c_i+ - c_i); the weights are those of FedAvg's objective. The derivation has no
    momentum, so there is none here, whatever `training.momentum` says; the global step size is 1.
    Global and personal model: w.
    """

    name: ClassVar[str] = "scaffold"

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the network, and c = 0."""
        zeros = {n: torch.zeros_like(t) for n, t in network.parameters.items()}
        return ServerState({**network.parameters, **network.buffers, **prefixed(zeros, _C)})

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return c_i = 0."""
        return prefixed({n: torch.zeros_like(t) for n, t in network.parameters.items()}, _CI)

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w, c and c_i."""
        return {**message.shared, **memory}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase with the gradient corrected by c - c_i, without momentum."""
        names = facts.layout.parameters
        step = Step(plain_loss, names, correction=lambda tensors: {n: tensors[_C + n] - tensors[_CI + n] for n in names}, momentum=0.0)
        return (Phase("shared", (step,)),)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return w_i and c_i+ - c_i, and keep c_i+."""
        scale = 1 / (facts.training.epochs * facts.batches * facts.training.lr)
        new = {n: tensors[_CI + n] - tensors[_C + n] + scale * (message.shared[n] - tensors[n]) for n in facts.layout.parameters}
        change = {n: t - tensors[_CI + n] for n, t in new.items()}
        network = {n: tensors[n] for n in message.shared if not n.startswith(_C)}
        return Update(client, message.task, facts.n_train, network, prefixed(change, _C)), prefixed(new, _CI)

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return the averaged network, and c as the mean of all clients' c_i, those of clients that never trained being zero."""
        after, total = averaged(state, updates), sum(clients.values())
        change = weighted_mean([replace(u, shared=u.extra) for u in updates])
        part = sum(u.weight for u in updates) / total
        known = float(state.kept.get(_TOTAL, torch.tensor(total))) / total  # a client that has joined since has c_i = 0, and takes its share
        moved = {n: (known * state.shared[n].double() + part * t.double()).to(t.dtype) for n, t in change.items()}
        return replace(after, shared={**after.shared, **moved}, kept={_TOTAL: torch.tensor(total, dtype=torch.float64)})
