"""A method of one's own in a file outside the package: `floco run -s algorithm.name=fedavgm:FedAvgM`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from floco.core import (
    Algorithm,
    Facts,
    Message,
    Network,
    Phase,
    ServerState,
    Step,
    Update,
    average,
    plain_loss,
    setting,
)


@dataclass(frozen=True)
class FedAvgM(Algorithm):
    """FedAvgM (Hsu, Qi, Brown, arXiv 1909.06335, 2019): FedAvg, whose server moves with momentum.

    v <- beta v + (w_t - mean), w <- w_t - v, with the mean of the clients' models by samples. Buffers are averaged.
    With beta = 0 it is FedAvg.
    """

    name: ClassVar[str] = "fedavgm"
    tuned: ClassVar[Mapping[str, tuple[float, float]]] = {"beta": (0.9, 0.5)}
    beta: float = setting(0.9, "beta: momentum of the server", low=0, below=1)

    def init(self, network: Network, *, seed: int) -> ServerState:
        """Return the network, and v = 0, which is never sent."""
        at_rest = {n: torch.zeros_like(t) for n, t in network.parameters.items()}
        return replace(super().init(network, seed=seed), kept=at_rest)

    def phases(self, message: Message, facts: Facts) -> tuple[Phase, ...]:
        """Return FedAvg's phase: all parameters, on the task's loss."""
        return (Phase("shared", (Step(plain_loss(facts.task), facts.layout.parameters),)),)

    def aggregate(self, state: ServerState, updates: Sequence[Update], *, clients: Mapping[str, int]) -> ServerState:
        """Return w_t - v = mean - beta v_t, and v."""
        after = average(state, updates)
        moved = {n: after.shared[n] - self.beta * v for n, v in state.kept.items()}
        kept = {n: state.shared[n] - w for n, w in moved.items()}
        return replace(after, shared={**after.shared, **moved}, kept=kept)
