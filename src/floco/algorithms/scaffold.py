"""Federated averaging with control variates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from floco.contract import Algorithm
from floco.network import Network
from floco.values import Facts, Message, Phase, ServerState, Step, Tensors, Update, averaged, plain_loss, prefixed, weighted_mean

_C = "variate/"  # c, sent to everybody
_CI = "own variate/"  # c_i, kept by the client


@dataclass(frozen=True)
class SCAFFOLD(Algorithm):
    """SCAFFOLD (Karimireddy et al., ICML 2020, algorithm 1, option II): local steps with g - c_i + c.

    c_i+ = c_i - c + (w_t - w_i) / (steps lr), and on the server c <- c + |S| / K mean_S(c_i+ - c_i); all variates start at
    zero. The mean is weighted by sample counts, as that of the weights is here (in the paper all clients are of equal size):
    with other weights the method would have another objective than FedAvg. The derivation has no momentum, so there is none here,
    whatever `training.momentum` says; the global step size is 1.
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

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: int) -> ServerState:
        """Return the averaged network, and c moved by |S| / K of the mean change."""
        after = averaged(state, updates)
        change = weighted_mean([replace(u, shared=u.extra) for u in updates])
        moved = {n: torch.add(state.shared[n], t, alpha=len(updates) / clients) for n, t in change.items()}
        return replace(after, shared={**after.shared, **moved})
