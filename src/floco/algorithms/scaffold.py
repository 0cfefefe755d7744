"""Federated averaging with control variates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from floco.core.algorithm import Algorithm, average, weighted_mean
from floco.core.network import Network
from floco.core.values import (
    Facts,
    Layout,
    Message,
    Phase,
    ServerState,
    Step,
    Tensors,
    Training,
    Update,
    add_prefix,
    plain_loss,
)

_C = "variate/"  # c, sent to every client
_CI = "own variate/"  # c_i, kept by the client
_TOTAL = "samples"  # n, over the clients whose mean is c


@dataclass(frozen=True)
class SCAFFOLD(Algorithm):
    """SCAFFOLD (Karimireddy et al., ICML 2020, algorithm 1, option II): local steps with g - c_i + c.

    c_i+ = c_i - c + (w_t - w_i) / (steps lr), and on the server c <- c + sum_S n_i / n (c_i+ - c_i), with n the number
    of training samples of all clients; all variates start at zero. Hence c = sum_i n_i / n c_i in every round, for any
    selection S. For clients of equal size this is the paper's c + |S| / K mean_S(c_i+ - c_i); the weights are those of
    FedAvg's objective. As in the derivation there is no momentum, whatever `training.momentum`; the global step size
    is 1.
    """

    name: ClassVar[str] = "scaffold"

    def resolved(self, training: Training, layout: Layout | None = None) -> Self:
        """Check that clients train by plain SGD."""
        training.require_sgd(self.name, "its variates are means of gradients only if a step is lr times a gradient")
        return self

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the network, and c = 0."""
        zeros = {n: torch.zeros_like(t) for n, t in network.parameters.items()}
        return ServerState({**network.parameters, **network.buffers, **add_prefix(zeros, _C)})

    def start(self, network: Network, *, seed: int) -> Tensors:
        """Return c_i = 0."""
        return add_prefix({n: torch.zeros_like(t) for n, t in network.parameters.items()}, _CI)

    def begin(self, message: Message, memory: Tensors, facts: Facts) -> Tensors:
        """Return w, c and c_i."""
        return {**message.shared, **memory}

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase with the gradient corrected by c - c_i, without momentum."""
        names = facts.layout.parameters

        def correction(tensors: Tensors) -> Tensors:
            return {n: tensors[_C + n] - tensors[_CI + n] for n in names}

        return (Phase("shared", (Step(plain_loss(facts.task), names, correction, momentum=0.0),)),)

    def finish(self, tensors: Tensors, message: Message, client: str, facts: Facts) -> tuple[Update, Tensors]:
        """Return w_i and c_i+ - c_i to send, and c_i+ to keep."""
        scale = 1 / (facts.steps(self.phases(message, facts)) * facts.training.lr)
        names, w = facts.layout.parameters, message.shared
        new = {n: tensors[_CI + n] - tensors[_C + n] + scale * (w[n] - tensors[n]) for n in names}
        change = {n: t - tensors[_CI + n] for n, t in new.items()}
        network = {n: tensors[n] for n in message.shared if not n.startswith(_C)}
        return Update(client, message.purpose, facts.n_train, network, add_prefix(change, _C)), add_prefix(new, _CI)

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return the averaged network, and c as the mean of all clients' c_i (zero for those that never trained)."""
        after, total = average(state, updates), sum(clients.values())
        change = weighted_mean([replace(u, shared=u.extra) for u in updates])
        part = sum(u.weight for u in updates) / total
        known = float(state.kept.get(_TOTAL, torch.tensor(total))) / total  # < 1 if clients joined, with c_i = 0
        moved = {n: (known * state.shared[n].double() + part * t.double()).to(t.dtype) for n, t in change.items()}
        return replace(after, shared={**after.shared, **moved}, kept={_TOTAL: torch.tensor(total, dtype=torch.float64)})
